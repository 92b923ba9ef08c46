"""gradclip.tensorflow: TensorFlow's own signatures, and its backend in every way that TensorFlow runs it."""

import functools
import math
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import oracle
import pytest
import tensorflow as tf

import gradclip
import gradclip.tensorflow as ours

INF, NAN = math.inf, math.nan


def eagerly(f, *raw):
    return tf.nest.map_structure(read, f(*map(tf.constant, raw)))


@functools.lru_cache(maxsize=16)
def traced(f, **options):
    """One tf.function for each f: called again with the same shapes, it is not traced and compiled again."""
    return tf.function(f, **options)


def in_a_function(f, *raw, **options):
    return tf.nest.map_structure(read, traced(f, **options)(*map(tf.constant, raw)))


def compiled(f, *raw):
    return in_a_function(f, *raw, jit_compile=True)


def without_shapes(f, *raw):
    signature = tuple(tf.TensorSpec(None, np.asarray(r).dtype) for r in raw)
    return in_a_function(f, *raw, input_signature=signature)


def in_a_v1_graph(f, *raw):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        fed = [tf.compat.v1.placeholder(np.asarray(r).dtype, np.shape(r)) for r in raw]
        return session.run(f(*fed), dict(zip(fed, raw, strict=True)))


def read(x):
    return x.numpy() if tf.is_tensor(x) and not isinstance(x, tf.IndexedSlices) else x


WAYS = [eagerly, in_a_function, compiled, in_a_v1_graph]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def run(request):
    return request.param


def f32(*rows):
    return np.array(rows, np.float32)


# What TensorFlow's own tests try --------------------------------------------------------------------------------------

MATRIX = f32([-3, 0, 0], [4, 0, 0])


@pytest.mark.parametrize(
    ("c", "axes", "want"),
    [
        (4.0, None, MATRIX * 0.8),
        (6.0, None, MATRIX),
        (5.0, None, MATRIX),
        (0.0, None, MATRIX * 0),
        (4.0, [0, 1], MATRIX * 0.8),
        (3.5, 1, f32([-3, 0, 0], [3.5, 0, 0])),
        (4.0, [0], MATRIX * 0.8),
        (4.0, (-1,), MATRIX),
        (INF, None, MATRIX),
        (f32([1.0], [4.0]), [1], f32([-1, 0, 0], [4, 0, 0])),
        (f32([2.5, 1.0, 1.0]), [0], MATRIX * 0.5),
    ],
)
def test_clip_by_norm(run, c, axes, want):
    np.testing.assert_allclose(run(lambda t: ours.clip_by_norm(t, c, axes), MATRIX), want, rtol=1e-6)


def test_clip_by_norm_takes_thresholds_and_axes_that_are_tensors(run):
    got = run(lambda t, c: ours.clip_by_norm(t, c, tf.constant([0])), MATRIX, np.float32(4))
    np.testing.assert_allclose(got, MATRIX * 0.8, rtol=1e-6)
    got = run(lambda t, c: ours.clip_by_norm(t, c, axes=[1]), MATRIX, f32([1.0], [4.0]))
    np.testing.assert_allclose(got, f32([-1, 0, 0], [4, 0, 0]), rtol=1e-6)
    assert np.isnan(ours.clip_by_norm([3.0, INF], 1.0)).all()
    np.testing.assert_array_equal(run(lambda t: ours.clip_by_norm(t, 4.0), MATRIX * 0), MATRIX * 0)


@pytest.mark.parametrize(("c", "factor"), [(4.0, 0.8), (6.0, 1.0), (0.0, 0.0), (INF, 1.0)])
def test_clip_by_global_norm(run, c, factor):
    a, b = f32([-2, 0, 0], [4, 0, 0]), f32(1, -2)
    *clipped, norm = run(lambda a, b: flat(ours.clip_by_global_norm([a, None, b], c)), a, b)
    assert float(norm) == 5.0
    np.testing.assert_allclose(clipped[0], a * factor, rtol=1e-6)
    np.testing.assert_allclose(clipped[1], b * factor, rtol=1e-6)


def flat(result):
    """Without None, which a session does not fetch."""
    clipped, norm = result
    return [t for t in clipped if t is not None] + [norm]


def test_a_norm_that_is_known_already(run):
    got = run(lambda a, n: flat(ours.clip_by_global_norm([a], 4.0, use_norm=n)), f32(3, 4), np.float32(8))
    np.testing.assert_allclose(got[0], [1.5, 2.0], rtol=1e-6)
    assert float(got[1]) == 8.0


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_one_that_is_not_finite_makes_all_nan(run, bad):
    a, b, norm = run(lambda a, b: flat(ours.clip_by_global_norm([a, b], 4.0)), f32(3, bad), f32(1))
    assert np.isnan([*a, *b]).all()
    np.testing.assert_equal(float(norm), abs(bad))


def test_sparse_gradients_keep_their_dense_shape(run):
    def clip(values):
        slices = tf.IndexedSlices(values, tf.constant([3, 4, 3]), tf.constant([10]))
        whole, norm = ours.clip_by_global_norm([slices], 1.0)
        alone = ours.clip_by_norm(slices, 1.0)
        boxed = ours.clip_by_value(slices, -1.0, 2.0)
        assert all(isinstance(s, tf.IndexedSlices) for s in (whole[0], alone, boxed))
        dense = [tf.scatter_nd(s.indices[:, tf.newaxis], s.values, [10]) for s in (whole[0], alone, boxed)]
        return [*dense, norm, whole[0].dense_shape]

    whole, alone, boxed, norm, shape = run(clip, f32(1, 4, 2))
    for clipped in (whole, alone):
        np.testing.assert_allclose(clipped, [0, 0, 0, 0.6, 0.8, 0, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(boxed, [0, 0, 0, 2, 2, 0, 0, 0, 0, 0])
    assert float(norm) == 5.0
    assert list(shape) == [10]


def boxed(low, high):
    return lambda t: ours.clip_by_value(t, low, high)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64", "int8", "int32", "int64", "uint8"])
def test_clip_by_value(run, kind):
    dtype = tf.as_dtype(kind).as_numpy_dtype
    t = np.array([[1, 3, 7], [4, 5, 9]]).astype(dtype)
    for low, high in ((2, 5), ([[2, 2, 6]], 5 + np.zeros((2, 1), int) + 2), ([[1], [5]], [[2], [7]]), (4, 4)):
        want = np.clip(t.astype(float), low, high)
        got = run(boxed(low, high), t)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.astype(float), want)
        if run is not in_a_v1_graph:  # limits of the tensor's own dtype, as TensorFlow wants them
            low, high = np.array(low).astype(dtype), np.array(high).astype(dtype)
            np.testing.assert_array_equal(run(ours.clip_by_value, t, low, high).astype(float), want)


def test_clip_by_value_keeps_nan(run):
    got = run(lambda t: ours.clip_by_value(t, -1.0, 2.0), f32(NAN, INF, -INF, 1e-40, -0.5))
    np.testing.assert_array_equal(got, [NAN, 2, -1, np.float32(1e-40), -0.5])


def test_global_norm(run):
    assert float(run(lambda a: ours.global_norm([a, None, 4.0]), f32(3, 0))) == 5.0
    assert float(ours.global_norm([])) == 0.0
    clipped, norm = ours.clip_by_global_norm([None], 1.0)
    assert clipped == [None]
    assert tf.is_tensor(norm)


def test_derivatives_at_zero_are_one():
    for clip in (lambda t: ours.clip_by_norm(t, 1.0), lambda t: ours.clip_by_global_norm([t], 1.0)[0][0]):
        t = tf.zeros(3)
        with tf.GradientTape() as tape:
            tape.watch(t)
            total = tf.reduce_sum(clip(t))
        np.testing.assert_array_equal(tape.gradient(total, t), [1, 1, 1])


def test_names_are_scopes_in_a_graph():
    with tf.Graph().as_default():
        t = tf.compat.v1.placeholder(tf.float32, [2])
        assert ours.clip_by_norm(t, 1.0, name="mine").name.startswith("mine/")
        assert ours.clip_by_value(t, -1.0, 1.0).name.startswith("clip_by_value/")
        assert ours.global_norm([t], name="n").name.startswith("n/")
        assert ours.clip_by_global_norm([t], 1.0, name="all")[0][0].name.startswith("all/")


# Where it differs -----------------------------------------------------------------------------------------------------


def test_each_difference_that_the_docstring_names():
    huge, half = f32(1e20, 2e20), np.ones(100_000, np.float16)
    assert np.isnan(tf.clip_by_global_norm([huge], 1.0)[0][0]).all()
    np.testing.assert_allclose(ours.clip_by_global_norm([huge], 1.0)[0][0], [0.4472136, 0.8944272], rtol=1e-6)
    assert np.isinf(tf.linalg.global_norm([half]))
    assert float(ours.global_norm([half])) == pytest.approx(math.sqrt(1e5))
    mixed = [f32(3), np.float16([4])]
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.clip_by_global_norm(mixed, 1.0)
    assert [t.dtype for t in ours.clip_by_global_norm(mixed, 1.0)[0]] == [tf.float32, tf.float16]
    np.testing.assert_allclose(ours.clip_by_norm([3 + 0j, 4j], 1.0), [0.6, 0.8j], rtol=1e-6)
    assert np.isnan(tf.clip_by_global_norm([f32(0)], 0.0)[0][0]).all()
    assert np.isnan(tf.clip_by_global_norm([f32(3)], INF)[0][0]).all()
    np.testing.assert_array_equal(tf.clip_by_norm(f32(3, INF), 1.0)[0], 0.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.clip_by_norm([3.0], -1.0), ValueError, "must be ≥ 0, got -1"),
        (lambda: ours.clip_by_norm([3.0], [-1.0]), ValueError, "must be ≥ 0"),
        (lambda: ours.clip_by_norm([3.0], [NAN]), ValueError, "must be ≥ 0"),
        (lambda: ours.clip_by_norm([3.0], ["1"]), TypeError, "clip_norm must hold numbers"),
        (lambda: ours.clip_by_norm([3.0], True), TypeError, "must be a number"),
        (lambda: ours.clip_by_norm([3], 1.0), TypeError, "has dtype int32"),
        (lambda: ours.clip_by_norm([3.0], [[1.0, 2.0]], 0), TypeError, "must be a number or"),
        (lambda: ours.clip_by_norm([3.0], 1.0, 1), ValueError, "no axis 1"),
        (lambda: ours.clip_by_global_norm([[3.0]], NAN), ValueError, "must be ≥ 0"),
        (lambda: ours.clip_by_global_norm([[3.0]], 1.0, -1.0), ValueError, "norm must be ≥ 0"),
        (lambda: ours.clip_by_global_norm(tf.constant([3.0]), 1.0), TypeError, "t_list must be a sequence"),
        (lambda: ours.global_norm("grads"), TypeError, "t_list must be a sequence"),
        (lambda: ours.clip_by_value([3.0], 1.0, -1.0), ValueError, "clip_value_min must be ≤ clip_value_max"),
        (lambda: ours.clip_by_value([3.0], [0.0], NAN), ValueError, "clip_value_max must not be NaN"),
        (lambda: ours.clip_by_value([1j], 0.0, 1.0), TypeError, "t must hold real numbers, got dtype complex"),
        (lambda: ours.clip_by_value([3], -3.1, 3.1), TypeError, "clip_value_min must hold integers"),
        (lambda: ours.clip_by_value([3], tf.constant(1.0), 3), TypeError, "must have dtype int32, got float32"),
        (lambda: ours.clip_by_value(tf.constant([3], tf.uint8), -1, 3), ValueError, "must fit uint8"),
        (lambda: ours.clip_by_value([3.0], True, 3.0), TypeError, "clip_value_min must hold numbers"),
        (lambda: ours.clip_by_value([3.0], [[1.0]], 3.0), ValueError, "cannot be broadcast to t"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The backend, in every way TensorFlow runs it -------------------------------------------------------------------------

RULES = {
    "global norm": lambda g: gradclip.clip_by_global_norm(g, 1.0).grads,
    "norm": lambda g: gradclip.clip_by_norm(g, 1.0),
    "slices": lambda g: gradclip.clip_by_norm(g, 1.0, axis=0),
    "value": lambda g: gradclip.clip_by_value(g, 1.0),
    "adaptive": lambda g: gradclip.clip_adaptive(g, g, 0.5),
}


ADDED = {
    "block rms": lambda g: gradclip.clip_by_block_rms(g, 0.5),
    "per example": lambda g: gradclip.clip_per_example(g, 1.0).grads,
    "leaf norms": lambda g: gradclip.leaf_norms([g, g]),
    "threshold of each leaf": lambda g: gradclip.clip_by_norm([g, g], [0.5, 2.0]),
    "threshold of each slice": lambda g: gradclip.clip_by_norm(g, tf.constant([[0.5], [2.0]]), axis=1),
    "axis of units": lambda g: gradclip.clip_adaptive(g, tf.ones_like(g), 0.5, axis=(1,)),
}
ALL = RULES | ADDED
SHAPELESS = [name for name in RULES if name != "adaptive"]


@pytest.mark.parametrize(
    ("rule", "way"),
    [(rule, way) for rule in ALL for way in (in_a_function, compiled, in_a_v1_graph)]
    + [(rule, without_shapes) for rule in SHAPELESS],
)
def test_every_rule_in_every_way(rule, way):
    for g in (f32([3, -4], [12, 0]), f32([0.3, -0.4], [0, 0.1]), f32([0, 0], [3e38, 3e38]), f32([NAN, 1], [INF, 1])):
        got, want = (tf.nest.flatten(how(ALL[rule], g)) for how in (way, eagerly))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("way", [in_a_function, in_a_v1_graph])
def test_a_threshold_of_unknown_rank(way):
    """What tf.numpy_function returns has neither a shape nor a rank."""

    def clip(g):
        threshold = tf.numpy_function(lambda n: n / 5, [gradclip.global_norm(g)], tf.float32)
        one = gradclip.clip_by_global_norm(g, threshold).grads
        return one, gradclip.clip_by_norm(g, threshold, axis=0), gradclip.clip_by_value(g, threshold)

    for got, want in zip(way(clip, f32(3, 4)), ([0.6, 0.8], [0.6, 0.8], [1, 1]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_adaptive_clipping_where_a_graph_does_not_know_the_shapes():
    def clip(g):
        return gradclip.clip_adaptive(g, tf.ones((2, 2)), 0.5)

    g = f32([3, -4], [12, 0])
    got = in_a_function(clip, g, input_signature=(tf.TensorSpec([None, 2], tf.float32),))
    np.testing.assert_allclose(got, eagerly(clip, g), rtol=1e-6)
    with pytest.raises(ValueError, match=r"grads, or its parameter, has no known rank here: tf\.ensure_shape"):
        without_shapes(clip, g)
    for shape in ([2, 3], [2]):
        with pytest.raises(ValueError, match="its parameter"):
            clip(tf.ones(shape))


def test_sparse_gradients_in_every_way(run):
    def clip(values):
        slices = tf.IndexedSlices(values, tf.constant([1, 0, 1]), tf.constant([4, 2]))
        clipped = gradclip.clip_by_global_norm(slices, 1.0).grads
        return tf.scatter_nd(clipped.indices[:, tf.newaxis], clipped.values, [4, 2])

    np.testing.assert_allclose(run(clip, f32([1, 0], [0, 4], [2, 0])), f32([0, 0.8], [0.6, 0], [0, 0], [0, 0]))


@pytest.mark.parametrize(("g", "kind"), [([1e-40, 0.5, -3e-42], "float32"), ([1e-310, 0.5], "float64")])
@pytest.mark.parametrize("rule", RULES)
def test_subnormal_numbers_stay_where_nothing_is_clipped(run, rule, g, kind):
    clip = RULES[rule] if rule != "adaptive" else lambda g: gradclip.clip_adaptive(g, tf.ones_like(g), 2.0)
    g = np.array(g, kind)
    assert run(clip, g).tobytes() == g.tobytes()


@pytest.mark.parametrize(
    ("weights", "factor", "eps", "want"),
    [
        ([3e38] * 2, 1e-3, 1e-3, [3e35] * 2),
        ([3e38] * 2, 0.0, 1e-3, [0.0] * 2),
        ([0.0] * 2, 1e-38, 1e38, [math.sqrt(0.5)] * 2),
        ([3e38] * 2, 2.0, 1e-3, [3e38] * 2),
    ],
)
def test_adaptive_clipping_where_a_norm_of_weights_overflows(run, weights, factor, eps, want):
    got = run(lambda g, w: gradclip.clip_adaptive(g, w, factor, eps=eps), f32(3e38, 3e38), f32(*weights))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("ord", [1, 2, 3, INF])
@pytest.mark.parametrize("axis", [None, 1])
def test_second_derivatives_are_finite_where_a_part_is_zero(ord, axis):
    """The first row is a block of zeros; the zeros depend on the input."""
    x = tf.constant(np.concatenate([np.zeros((1, 512)), np.ones((1, 512)) + 0.01 * np.arange(512)]), tf.float32)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            clipped = gradclip.clip_by_norm(x, 1.0, ord=ord, axis=axis)
            total = tf.reduce_sum(clipped**2 * tf.range(1.0, 513.0))
        first = inner.gradient(total, x)
    assert np.isfinite(first).all()
    assert np.isfinite(outer.gradient(first, x)).all()


def test_complex_infinity_becomes_nan_in_both_parts(run):
    for clip in (RULES["global norm"], RULES["norm"], RULES["slices"]):
        got = run(clip, np.array([INF + 0j, 1j], np.complex64))
        assert np.isnan(got.real).all()
        assert np.isnan(got.imag).all()


# AutoGraph, which rewrites what a tf.function calls, warns once a process of what it cannot read: hence a new one.
UNDER_AUTOGRAPH = """
import functools
import tensorflow as tf, gradclip, gradclip.tensorflow as ours
grads = {"w": tf.constant([[3.0, 4.0]]), "b": [tf.constant([[12.0]]), None]}
rows = tf.IndexedSlices(tf.ones([2, 2]), tf.constant([1, 1]), tf.constant([3, 2]))
for function, *arguments in [
    (gradclip.global_norm, [rows, grads]),
    (gradclip.leaf_norms, [rows, grads]),
    (gradclip.clip_by_global_norm, [rows, grads], 1.0),
    (gradclip.clip_by_norm, [rows, grads], 1.0),
    (gradclip.clip_by_norm, grads, {"w": 1.0, "b": [2.0, None]}),
    (functools.partial(gradclip.clip_by_norm, axis=0), grads["w"], tf.ones([1, 2])),
    (gradclip.clip_by_block_rms, grads, 1.0),
    (gradclip.clip_by_value, [rows, grads], (-1.0, 2.0)),
    (gradclip.clip_adaptive, grads, grads),
    (gradclip.clip_per_example, grads, 1.0),
    (ours.global_norm, [rows]),
    (ours.clip_by_global_norm, [rows], 1.0),
    (ours.clip_by_norm, rows, 1.0),
    (ours.clip_by_value, rows, -1.0, 1.0),
]:
    tf.function(function)(*arguments)
print("done")
"""


def test_autograph_reads_all_functions():
    run = subprocess.run([sys.executable, "-c", UNDER_AUTOGRAPH], capture_output=True, text=True, check=False)
    assert run.stdout == "done\n", run.stderr
    assert [line for line in run.stderr.splitlines() if "AutoGraph" in line] == []


@pytest.mark.parametrize("shape", [None, [None, 2]])
def test_the_rms_of_an_array_whose_size_a_graph_does_not_know(shape):
    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
    def clip(x):
        return gradclip.clip_by_block_rms(x, 1.0)

    with pytest.raises(ValueError, match=r"grads has a shape that is not known here: tf.ensure_shape sets it"):
        clip(tf.ones((3, 2)))


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("ord", [0.5, 1, 2, INF])
def test_thresholds_near_the_smallest_normal_number(ord, axis):
    """Where the threshold over the mantissa of the norm is no normal number, although the factor is about a half."""
    for raw in ([5e-308], [3e-308, 3e-308], [4e-308j, 3e-308 + 3e-308j]):
        for dtype in ("float64", "complex128"):
            if dtype == "complex128" or np.isrealobj(raw):
                g = tf.constant(np.array(raw), dtype)
                n = oracle.norm([np.array(raw)], ord)
                clipped = gradclip.clip_by_norm(g, n / 1.25, ord=ord, axis=axis).numpy()
                # TensorFlow makes zeros of subnormal numbers, also of those that come of clipping.
                np.testing.assert_allclose(clipped, np.array(raw) / 1.25, rtol=1e-9)
                assert np.isfinite(gradclip.clip_by_norm(g, 2.3e-308, ord=ord, axis=axis).numpy()).all()
