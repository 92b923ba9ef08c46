"""Kinds of arrays, thresholds and derivatives: each is understood as what it is, or refused by name."""

import sys
import types

import jax
import jax.numpy as jnp
import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from systems import bits, values

import gradclip
from gradclip import backends

RTOL = {"float16": 1e-3, "bfloat16": 8e-3}  # the rounding of one element
CLIPS = {
    "global norm": lambda g: gradclip.clip_by_global_norm(g, 1.0).grads,
    "order 3": lambda g: gradclip.clip_by_global_norm(g, 1.0, ord=3).grads,
    "norm": lambda g: gradclip.clip_by_norm(g, 1.0),
    "slices": lambda g: gradclip.clip_by_norm(g, 1.0, axis=-1),
    "rms": lambda g: gradclip.clip_by_block_rms(g, 0.5),
    "adaptive": lambda g: gradclip.clip_adaptive(g, g * 0 + 1.0, 0.1),
}


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3), elements=st.floats(-1e300, 1e300)),
    st.sampled_from(["f8", "f4", "f2", "c16", "c8"]),
)
def test_the_order_of_bytes_does_not_matter(raw, kind):
    with np.errstate(over="ignore"):
        native = raw.astype(f"={kind}")
    for name, clip in ((n, np.errstate(all="ignore")(c)) for n, c in CLIPS.items()):
        other = native.astype(native.dtype.newbyteorder(">"))
        clipped = clip(other)
        assert clipped.dtype == other.dtype
        np.testing.assert_array_equal(clipped, clip(native), err_msg=name)
    in_place = native.astype(native.dtype.newbyteorder(">"))
    gradclip.clip_by_global_norm_(in_place, 1.0)
    np.testing.assert_array_equal(in_place, CLIPS["global norm"](native))


class Doubled(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, kinds, arguments=(), keywords=None):
        return super().__torch_function__(function, kinds, arguments, keywords or {})


@pytest.mark.filterwarnings(
    "ignore:The PyTorch API of MaskedTensors", "ignore:The PyTorch API of nested tensors", "ignore:the matrix subclass"
)
def test_subclasses_that_change_what_arrays_do_are_refused():
    ones = torch.ones(2)
    for bad, hint in (
        (np.ma.masked_array([1.0, 1e9], [False, True]), "MaskedArray.*filled"),
        (np.asmatrix([[1.0]]), "matrix.*asarray"),
        (torch.masked.masked_tensor(ones, torch.tensor([True, False])), "MaskedTensor.*to_tensor"),
        (torch.nested.nested_tensor([ones, ones]), "nested"),
        (ones.as_subclass(Doubled), "Doubled.*as_subclass"),
        (keras.Variable([1.0, 2.0]), r"pass its \.value"),
    ):
        for call in (gradclip.global_norm, lambda g: gradclip.clip_by_global_norm([g], 1.0)):
            with pytest.raises(TypeError, match=hint):
                call(bad)
    with pytest.raises(TypeError, match=r"pass its \.value"):
        gradclip.clip_by_global_norm(np.ones(2), keras.Variable(1.0))
    plain = type("Plain", (torch.Tensor,), {})
    assert float(gradclip.global_norm(torch.tensor([3.0, 4.0]).as_subclass(plain))) == 5.0


def test_frameworks_that_are_blocked_or_stubs_are_not_looked_for(monkeypatch):
    for stub in (None, types.ModuleType("stub")):
        monkeypatch.setattr(backends, "BY_TYPE", {})
        monkeypatch.setattr("gradclip.trees.BY_TYPE", backends.BY_TYPE)
        for name in ("tensorflow", "jax", "torch"):
            monkeypatch.setitem(sys.modules, name, stub)
        assert gradclip.global_norm([np.array([3.0, 4.0])]) == 5.0
        with pytest.raises(TypeError, match="is of type str"):
            gradclip.global_norm("text")


def test_thresholds_of_one_element(system):
    g = system.array([3.0, 4.0])
    for c in (system.array([1.0]), np.array([1.0])):
        for clip in (gradclip.clip_by_norm, lambda g, c: gradclip.clip_by_global_norm(g, c).grads):
            np.testing.assert_allclose(values(clip(g, c)), [0.6, 0.8], rtol=1e-6)
        np.testing.assert_array_equal(values(gradclip.clip_by_value(g, c)), [1, 1])
        np.testing.assert_array_equal(values(gradclip.clip_by_value(g, (-c, c))), [1, 1])
    norm = gradclip.clip_by_global_norm(g, 1.0, norm=system.array([10.0])).norm
    assert norm.shape == ()
    for huge in (10**400, -(10**400)):
        with pytest.raises(ValueError, match="too large for a float"):
            gradclip.clip_by_norm(g, huge)


def test_a_threshold_for_each_array_and_slice(system):
    rows, bias = np.array([[3.0, 4.0], [0.6, 0.8], [30.0, 40.0]]), np.array([3.0, 4.0])
    g = {"w": system.array(rows), "b": [system.array(bias), None]}
    clipped = gradclip.clip_by_norm(g, {"w": 5.0, "b": [system.array(0.5), None]})
    np.testing.assert_allclose(values(clipped["w"]), oracle.clip_by_norm(rows, 5.0), rtol=1e-6)
    np.testing.assert_allclose(values(clipped["b"][0]), [0.3, 0.4], rtol=1e-6)
    limits = np.array([[1.0], [2.0], [5.0]])
    got = values(gradclip.clip_by_norm(g["w"], system.array(limits), axis=1))
    np.testing.assert_allclose(got, [[0.6, 0.8], [0.6, 0.8], [3.0, 4.0]], rtol=1e-6)
    for bad, message in (
        ({"w": 1.0}, "structure of grads"),
        ({"w": 1.0, "b": [-1.0, None]}, r"max_norm\['b'\]\[0\] must be ≥ 0"),
        ({"w": "1", "b": [1.0, None]}, r"max_norm\['w'\] must be a number"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            gradclip.clip_by_norm(g, bad)
    with pytest.raises(ValueError, match="must be ≥ 0, got -2"):
        gradclip.clip_by_norm(g["w"], system.array(-limits + 3), axis=1)
    with pytest.raises(TypeError, match=r"broadcast to \(3, 1\)"):
        gradclip.clip_by_norm(g["w"], system.array([1.0, 2.0, 3.0]), axis=1)


def test_axes_may_be_a_list(system):
    g = system.array(np.arange(24.0).reshape(2, 3, 4))
    assert bits(gradclip.clip_by_norm(g, 1.0, axis=[0, 2])) == bits(gradclip.clip_by_norm(g, 1.0, axis=(0, 2)))


def test_units_by_their_axes(system):
    rng = np.random.default_rng(0)
    g, w = rng.standard_normal((2, 3, 2, 3, 4)), rng.standard_normal((2, 3, 2, 3, 4))
    size, limit = (np.sqrt((x**2).sum((0, 1, 2), keepdims=True)) for x in (g, w))
    want = g * np.minimum(1, 0.1 * limit / size)
    tree, weights = ([system.array(x), system.array([1.0, 2.0])] for x in (g, w))
    clipped = gradclip.clip_adaptive(tree, weights, 0.1, axis=(0, 1, 2))
    np.testing.assert_allclose(values(clipped[0]), want, rtol=1e-6)
    with pytest.raises(ValueError, match="unit_axis and axis"):
        gradclip.clip_adaptive(tree, weights, 0.1, axis=0, unit_axis=1)


def test_adaptive_limits_beyond_the_largest_float32(in_place_system):
    system = in_place_system
    g, w = system.array([[3e38, 3e38]]), system.array([[3e38, 3e38]])
    options = {"unit_axis": 0}
    np.testing.assert_allclose(values(gradclip.clip_adaptive(g, w, 0.5, **options)), [[1.5e38, 1.5e38]], rtol=1e-6)
    assert bits(gradclip.clip_adaptive(g, w, 1.0, **options)) == bits(g)
    assert (values(gradclip.clip_adaptive(g, w, 0.0, **options)) == 0).all()
    small = system.array([[3.0, 4.0]])
    got = gradclip.clip_adaptive(small, small * 0, 1e-38, eps=1e38, **options)
    np.testing.assert_allclose(values(got), [[0.6, 0.8]], rtol=1e-6)


def test_infinite_complex_gradients_become_nan_in_both_parts(system):
    for dtype in {"complex64", "complex128"}.intersection(system.dtypes):
        g = system.array([complex(np.inf, 0), 1.0], dtype)
        for clipped in (gradclip.clip_by_global_norm(g, 1.0).grads, gradclip.clip_by_norm(g, 1.0)):
            assert np.isnan(values(clipped).real).all()
            assert np.isnan(values(clipped).imag).all()


def test_the_norm_of_each_array(system):
    raw = [np.array([[3.0, 4.0]]), np.array(-2.0), np.zeros((0, 3)), np.full((100, 100), 0.1)]
    norms = gradclip.leaf_norms({"a": [system.array(r) for r in raw], "b": None})
    for norm, r in zip(norms["a"], raw, strict=True):
        assert norm.shape == ()
        assert float(norm) == pytest.approx(oracle.norm([r]), rel=1e-6)
    assert norms["b"] is None


def test_one_array_has_one_norm_whoever_asks(system):
    """Bit for bit: a threshold that was measured by one function would clip in another.

    XLA compiles each function anew, and sums float64 in an order of its own there: a last bit may differ.
    """
    rng = np.random.default_rng(0)
    own = system.in_place  # the others take longer, and ask one function
    shapes = [(33, 70), (513,), *([(), (7,), (64, 64), (2, 3, 400), (40, 0)] if own else [])]
    for dtype in system.dtypes if own else {"float32", "float64"}.intersection(system.dtypes):
        raw = [rng.standard_normal(s) * (1 + 0.5j if dtype.startswith("complex") else 1) for s in shapes]
        arrays = [system.array(r, dtype) for r in raw] * (3 if own else 1)
        arrays += [arrays[0].T] if own else []
        for ord in (0.5, 1, 2, 3, np.inf) if own else (2,):
            for a, norm in zip(arrays, gradclip.leaf_norms(arrays, ord=ord), strict=True):
                same = gradclip.global_norm(a, ord=ord)
                np.testing.assert_allclose(values(norm), values(same), rtol=0 if own else 4 * np.finfo(dtype).eps)
                if own:
                    assert bits(gradclip.clip_by_norm([a, a], norm, ord=ord)[1]) == bits(a)


def test_root_mean_squares(system):
    g = [system.array([[3.0, -4.0], [0.0, 0.0]]), system.array([0.5]), system.array(np.zeros(0))]
    clipped = gradclip.clip_by_block_rms(g, 1.0)
    np.testing.assert_allclose(values(clipped[0]), [[1.2, -1.6], [0, 0]], rtol=1e-6)
    assert [bits(c) for c in clipped[1:]] == [bits(a) for a in g[1:]]
    with pytest.raises(ValueError, match="threshold must be ≥ 0"):
        gradclip.clip_by_block_rms(g, -1.0)


# Near an end of a dtype ----------------------------------------------------------------------------------------------

HOMOGENEOUS = {  # clipping t·g to t·c gives t times what clipping g to c gives
    "global norm": lambda g, c, ord: gradclip.clip_by_global_norm(g, c, ord=ord).grads,
    "norm": lambda g, c, ord: gradclip.clip_by_norm(g, c, ord=ord),
    "each": lambda g, c, ord: gradclip.clip_by_norm([g, g], c, ord=ord)[1],
    "slices": lambda g, c, ord: gradclip.clip_by_norm(g, c, ord=ord, axis=1),
    "example": lambda g, c, ord: gradclip.clip_per_example(g, c, ord=ord).grads,
    "rms": lambda g, c, ord: gradclip.clip_by_block_rms(g, c / 2),
    "weights": lambda g, c, ord: gradclip.clip_adaptive(g, g, 0.25, eps=0.0, ord=ord, unit_axis=0),
    "eps": lambda g, c, ord: gradclip.clip_adaptive(g, g * 0, 0.25, eps=c, ord=ord, unit_axis=0),
}


@pytest.mark.parametrize("ord", [0.5, 1, 2, 3, 100, np.inf])
@pytest.mark.parametrize("rule", HOMOGENEOUS)
def test_gradients_and_limits_near_an_end_of_their_dtype(in_place_system, rule, ord):
    """All subnormal, or so large that most norms do not fit: as in the middle, times a power of two.

    TensorFlow and XLA are left out, for they take subnormal numbers for zero.
    """
    system, clip = in_place_system, HOMOGENEOUS[rule]
    real = np.array([[16.0, -8.0, 31.0], [4.0, 12.0, 0.0]])
    ends = {"float16": (-24, -20, 11), "bfloat16": (-133, -132, 123), "float32": (-149, -132, 123)}
    ends |= {"float64": (-1074, -1028, 1019)}
    for dtype, exponents in {**ends, "complex64": ends["float32"], "complex128": ends["float64"]}.items():
        raw = real + 1j * real[::-1] if dtype.startswith("complex") else real
        want = values(clip(system.array(raw, dtype), 8.0, ord))
        for exponent in exponents:
            t = 2.0**exponent
            ways = [system.array(raw * t, dtype)]
            if system.name == "torch":
                ways.append(system.array(raw * t, dtype).requires_grad_())
            for g in ways:
                got = values(clip(g, 8 * t, ord))
                step = 2.0 ** (exponents[0] - exponent)  # between neighbouring subnormal numbers
                for one, other in ((got.real, want.real), (got.imag, want.imag)):  # to divide complex numbers overflows
                    np.testing.assert_allclose(one / t, other, rtol=RTOL.get(dtype, 1e-6), atol=step)


def test_a_root_mean_square_whose_norm_would_not_fit(system):
    if "float64" in system.dtypes:
        raw = [1.5e308, -1.5e308, 1.5e308, 1.5e308]
        g = [system.array(x, "float64") for x in ([], raw, [1e300], raw)]
        for limit, want in ((1e308, 1e308), (np.inf, 1.5e308)):
            _, clipped, small, again = map(values, gradclip.clip_by_block_rms(g, limit))
            for got in (clipped, again):
                np.testing.assert_allclose(np.abs(got), want, rtol=1e-12)
            assert small == 1e300


# Per example ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ord", [1, 2, np.inf])
def test_each_example_by_its_norm_over_all_arrays(system, ord):
    rng = np.random.default_rng(0)
    raw = [rng.standard_normal((4, 3, 2)), rng.standard_normal((4,)), rng.standard_normal((4, 5))]
    raw[0][2] *= 1e38 / 3
    raw[1][3] = np.nan
    arrays = [system.array(r) for r in raw]
    clipped, norm = gradclip.clip_per_example(arrays, 1.0, ord=ord)
    assert norm.shape == (4,)
    for i in range(3):
        example = [values(a)[i] for a in arrays]
        assert float(norm[i]) == pytest.approx(oracle.norm(example, ord), rel=1e-6)
        for got, want in zip(clipped, oracle.clip_by_global_norm(example, 1.0, ord), strict=True):
            np.testing.assert_allclose(values(got)[i], want, rtol=2e-6, atol=1e-37)
    assert all(np.isnan(values(c)[3]).all() for c in clipped)
    with pytest.raises(ValueError, match=r"grads\[1\] holds 2 examples, grads\[0\] holds 4"):
        gradclip.clip_per_example([arrays[0], arrays[0][:2]], 1.0)
    with pytest.raises(ValueError, match="first axis"):
        gradclip.clip_per_example([system.array(1.0)], 1.0)


def test_the_recipes_with_vmap():
    w, batch = np.array([1.0, -0.5], np.float32), np.array([[3.0, 4.0], [0.1, 0.0], [1.0, 1.0]], np.float32)

    def loss(w, x):
        return (w @ x) ** 2

    by_torch = torch.func.vmap(torch.func.grad(loss), (None, 0))(torch.tensor(w), torch.tensor(batch))
    by_jax = jax.vmap(jax.grad(loss), (None, 0))(jnp.array(w), jnp.array(batch))
    exact = 2 * (batch @ w)[:, None] * batch
    want = oracle.clip_by_norm(exact.astype(float), 1.0, axis=1).sum(0)
    for per_example in (by_torch, by_jax):
        np.testing.assert_allclose(
            gradclip.clip_per_example({"w": per_example}, 1.0).grads["w"].sum(0), want, rtol=1e-5
        )


# Derivatives ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("clip", CLIPS)
def test_forward_mode_is_reverse_mode(clip):
    """Dual tensors, jacobian(strategy="forward-mode"), jvp and gradcheck in both modes."""
    rng = np.random.default_rng(1)
    for scale in (3.0, 0.01):
        g = torch.tensor(rng.standard_normal((2, 3)) * scale)
        reverse = torch.autograd.functional.jacobian(CLIPS[clip], g)
        for vectorize in (True,):
            forward = torch.autograd.functional.jacobian(CLIPS[clip], g, strategy="forward-mode", vectorize=vectorize)
            np.testing.assert_allclose(forward, reverse, rtol=1e-12, atol=1e-12)
        tangent = torch.tensor(rng.standard_normal((2, 3)))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(g, tangent)
            _, got = torch.autograd.forward_ad.unpack_dual(CLIPS[clip](dual))
        want = torch.einsum("ijkl,kl->ij", reverse, tangent)
        np.testing.assert_allclose(torch.zeros(2, 3) if got is None else got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip", CLIPS)
def test_second_derivatives_are_finite_and_right(clip):
    raw = [[3.0, -1.0], [0.3, 2.0]]
    g = torch.tensor(raw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(CLIPS[clip], g, atol=1e-5)
    if clip in ("global norm", "order 3", "norm"):  # an array of zeros that depends on the input
        second = torch.autograd.functional.hessian(lambda x: sum((c**2).sum() for c in CLIPS[clip]([x, x * 0])), g)
        assert torch.isfinite(second).all()


def test_traced_by_make_fx_and_jit():
    from torch.fx.experimental.proxy_tensor import make_fx

    large, small = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    for mode in ("real", "fake", "symbolic"):
        traced = make_fx(lambda g: gradclip.clip_by_global_norm(g, 1.0).grads, tracing_mode=mode)(large)
        np.testing.assert_allclose(traced(large), [0.6, 0.8], rtol=1e-6)
        np.testing.assert_array_equal(traced(small), small)  # the branch was not recorded


def test_adaptive_clipping_keeps_no_graph_of_the_weights():
    w = torch.nn.Parameter(torch.ones(2, 2))
    clipped = gradclip.clip_adaptive(torch.full((2, 2), 9.0), w)
    assert not clipped.requires_grad
    g = jnp.full((2, 2), 9.0)
    through = jax.grad(lambda w: gradclip.clip_adaptive(g, w).sum())(jnp.ones((2, 2)))
    assert (through == 0).all()
    with tf.GradientTape() as tape:
        v = tf.Variable(tf.ones((2, 2)))
        total = tf.reduce_sum(gradclip.clip_adaptive(tf.fill((2, 2), 9.0), v))
    assert tape.gradient(total, v) is None


def test_autograd_keeps_the_gradients_once_more():
    g, kept = torch.randn(1 << 20, requires_grad=True), 0

    def pack(t):
        nonlocal kept
        kept += 0 if t.untyped_storage().data_ptr() == g.untyped_storage().data_ptr() else t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        gradclip.clip_by_global_norm(g, 1.0)
    assert kept <= 1.1 * g.nbytes
