"""The contract, rule by rule, on every framework. The numbers are those of the contract's table."""

import collections
import itertools
import math
import types

import ml_dtypes
import numpy as np
import oracle
import pytest
import tensorflow as tf
import torch
from systems import bits, dtype_name, values

import gradclip

INF, NAN = math.inf, math.nan
ORDERS = (0.5, 1, 1.5, 2, 3, INF)
EPS = {"float16": 1e-3, "bfloat16": 8e-3}  # rounding of one element; 1e-6 for the others

Pair = collections.namedtuple("Pair", "weight bias")


def close(system, got, want, dtype="float32"):
    np.testing.assert_allclose(values(got), want, rtol=EPS.get(dtype, 1e-6), atol=1e-12)


def sample(system, dtype, *shapes, seed=0):
    """Standard normal arrays as the framework holds them, and the same as float64."""
    rng = np.random.default_rng(seed)
    raw = [rng.standard_normal(s) for s in shapes]
    if dtype.startswith("complex"):
        raw = [r + 1j * rng.standard_normal(r.shape) for r in raw]
    arrays = [system.array(r, dtype) for r in raw]
    return arrays, [values(a) for a in arrays]


# Rule 1: the formula -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ord", ORDERS)
def test_rule_1_scales_to_the_threshold(system, ord):
    for dtype in system.dtypes:
        arrays, exact = sample(system, dtype, (7, 5), (3,), ())
        n = oracle.norm(exact, ord)
        clipped, norm = gradclip.clip_by_global_norm(arrays, n / 3, ord=ord)
        for got, want in zip(clipped, oracle.clip_by_global_norm(exact, n / 3, ord), strict=True):
            assert got.shape == want.shape
            assert dtype_name(got) == dtype
            close(system, got, want, dtype)
        assert float(norm) == pytest.approx(n, rel=1e-6)
        if dtype not in EPS:
            assert oracle.norm([values(g) for g in clipped], ord) <= n / 3 * (1 + 1e-6)


def test_rule_1_within_the_threshold_nothing_changes(system):
    for dtype in system.dtypes:
        arrays, _ = sample(system, dtype, (7, 5), (300,))
        n = gradclip.global_norm(arrays)
        for c in (float(n), n, float(n) * 2, 1e300, INF):  # at the norm itself, too
            clipped = gradclip.clip_by_global_norm(arrays, c).grads
            assert [bits(a) for a in clipped] == [bits(a) for a in arrays]


def test_rule_1_just_above_the_threshold(system):
    g = system.array([3.0, 4.0])
    below = float(np.nextafter(np.float32(5), np.float32(0)))
    clipped, norm = gradclip.clip_by_global_norm(g, below)
    assert float(norm) == 5.0
    assert oracle.norm([values(clipped)]) <= below * (1 + 1e-6)
    assert (values(gradclip.clip_by_global_norm(g, 5.0).grads) == [3, 4]).all()


@pytest.mark.parametrize("c", [1e-3, 1e-6, 1e-30])
def test_rule_1_no_epsilon(system, c):
    g = system.array([0.6 * c, 0.8 * c])
    n = gradclip.global_norm(g)
    assert bits(gradclip.clip_by_global_norm(g, n).grads) == bits(g)
    close(system, gradclip.clip_by_global_norm(g, c / 2).grads, [0.3 * c, 0.4 * c])
    assert np.all(values(gradclip.clip_by_global_norm(g, c / 2).grads) != 0)


def test_rule_1_is_idempotent(system):
    arrays, _ = sample(system, "float32", (100,), (10, 10))
    once = gradclip.clip_by_global_norm(arrays, 1.0).grads
    twice = gradclip.clip_by_global_norm(once, 1.0).grads
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(values(a), values(b), rtol=2e-7)


# Rule 2: one vector --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ord", ORDERS)
def test_rule_2_the_global_norm_is_that_of_all_arrays_joined(system, ord):
    arrays, exact = sample(system, "float32", (4, 6), (11,), (1, 1, 3))
    joined = np.concatenate([e.ravel() for e in exact])
    want = float((np.abs(joined) ** ord).sum() ** (1 / ord)) if ord < INF else np.abs(joined).max()
    assert float(gradclip.global_norm(arrays, ord=ord)) == pytest.approx(want, rel=1e-6)
    assert float(gradclip.global_norm(system.array(joined), ord=ord)) == pytest.approx(want, rel=1e-6)


def test_rule_2_numbers_a_hand_can_check(system):
    g = {"w": system.array([3.0, 0.0]), "b": system.array([[-4.0]])}
    assert [float(gradclip.global_norm(g, ord=p)) for p in (1, 2, INF)] == [7.0, 5.0, 4.0]
    one_to_five = system.array([1.0, 2.0, 3.0, 4.0, 5.0])
    clipped, norm = gradclip.clip_by_global_norm(one_to_five, 3.0)
    assert float(norm) == pytest.approx(7.416198, rel=1e-6)
    close(system, clipped, [0.404520, 0.809040, 1.213560, 1.618080, 2.022600], "float16")


@pytest.mark.parametrize("ord", [0, -1, NAN, "fro", None, True, -INF])
def test_rule_2_other_orders_are_refused(system, ord):
    g = system.array([1.0])
    for call in (gradclip.global_norm, lambda g, ord: gradclip.clip_by_norm(g, 1.0, ord=ord)):
        with pytest.raises(ValueError, match="ord must be"):
            call(g, ord=ord)


# Rule 3: accurate ----------------------------------------------------------------------------------------------------


def test_rule_3_the_norms_dtype(system):
    for dtype in system.dtypes:
        norm = gradclip.global_norm(system.array([3, 4], dtype))
        assert system.is_own(norm)
        assert norm.shape == ()
        assert dtype_name(norm) == ("float64" if dtype in ("float64", "complex128") else "float32")
        assert float(norm) == 5.0


@pytest.mark.parametrize("fill", [0.1, 0.3, 1 / 3, 0.7, "normal", "mixed signs and sizes"])
def test_rule_3_accuracy(system, fill):
    size = 3_000_001
    rng = np.random.default_rng(1)
    raw = {"normal": rng.standard_normal, "mixed signs and sizes": lambda n: rng.standard_normal(n) ** 9}
    exact = raw[fill](size) if fill in raw else np.full(size, fill)
    for dtype in ("float32", "float16", "bfloat16"):
        g = system.array(exact, dtype)
        if np.isinf(values(g)).any():  # the ninth powers do not fit float16
            continue
        assert float(gradclip.global_norm(g)) == pytest.approx(oracle.norm([values(g)]), rel=1e-6)


def test_rule_3_double_precision_keeps_its_digits(system):
    for dtype in {"float64", "complex128"}.intersection(system.dtypes):
        arrays, exact = sample(system, dtype, (300, 7), (5,))
        for ord in ORDERS:
            assert float(gradclip.global_norm(arrays, ord=ord)) == pytest.approx(oracle.norm(exact, ord), rel=1e-14)
        close = gradclip.clip_by_norm(arrays[0], 0.1, axis=0)
        np.testing.assert_allclose(values(close), oracle.clip_by_norm(exact[0], 0.1, axis=0), rtol=1e-14)


def test_rule_3_many_small_arrays_are_as_accurate_as_a_large_one(system):
    g = system.array(np.full(100, 0.1))
    want = oracle.norm([values(g)]) * math.sqrt(3000)
    assert float(gradclip.global_norm([g] * 3000)) == pytest.approx(want, rel=1e-6)


def test_arrays_of_many_sizes_and_dtypes_keep_their_places(system):
    """Backends join small arrays. Each must come back as itself, whatever its neighbours are."""
    shapes = [(3,), (600, 500), (), (2, 1, 4), (0, 3), (512,), (70, 70), (1 << 18,), (5,), (1, 7)]
    raw = np.random.default_rng(9)
    dtypes = [system.reals[i % len(system.reals)] for i in range(3 * len(shapes))]
    arrays = [system.array(raw.standard_normal(s), d) for s, d in zip(shapes * 3, dtypes, strict=True)]
    exact = [values(a) for a in arrays]
    want, norm = oracle.clip_by_global_norm(exact, 100.0), oracle.norm(exact)
    clipped = gradclip.clip_by_global_norm(arrays, 100.0)
    assert float(clipped.norm) == pytest.approx(norm, rel=1e-6)
    for array, own, theirs in zip(arrays, clipped.grads, want, strict=True):
        assert own.shape == array.shape
        assert own.dtype == array.dtype
        np.testing.assert_allclose(values(own), theirs, rtol=EPS.get(dtype_name(array), 1e-6), atol=1e-7)
    for array, same in zip(arrays, gradclip.clip_by_global_norm(arrays, 1e4).grads, strict=True):
        assert bits(same) == bits(array)


# Rule 4: overflow-safe -----------------------------------------------------------------------------------------------


def test_rule_4_the_promise(system):
    clipped, norm = gradclip.clip_by_global_norm(system.array([1e20, 2e20]), 1.0)
    close(system, clipped, [0.4472136, 0.8944272])
    assert float(norm) == pytest.approx(2.2360680e20, rel=1e-6)


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize(
    ("raw", "dtype"),
    [
        ([1e20, -2e20, 3.0], "float32"),
        ([1e-30, 1e-30], "float32"),
        ([1e-42, -3e-42], "float32"),
        ([40000.0, 40000.0, -40000.0, 40000.0], "float16"),
        ([1e30, 1e30], "bfloat16"),
        ([1e200, -3e200], "float64"),
        ([1e-200, 3e-200], "float64"),
        ([1e30 + 2e30j, 1e30], "complex64"),
        ([1e200 + 2e200j, 1e200], "complex128"),
    ],
)
def test_rule_4_the_norm_is_right_where_its_powers_do_not_fit(system, raw, dtype, ord):
    if dtype not in system.dtypes:
        return
    if dtype == "float32" and min(np.abs(raw)) < 1e-38 and not system.in_place:
        return  # XLA and TensorFlow read subnormal numbers as zero
    g = system.array(raw, dtype)
    n = oracle.norm([values(g)], ord)
    clipped, norm = gradclip.clip_by_global_norm(g, n / 4, ord=ord)
    assert float(norm) == pytest.approx(n, rel=1e-6)
    tiny = 2e-45 if n < 1e-38 and dtype == "float32" else 0  # one step between subnormal numbers
    want = oracle.clip_by_global_norm([values(g)], n / 4, ord)[0]
    np.testing.assert_allclose(values(clipped), want, rtol=EPS.get(dtype, 1e-6), atol=tiny)


@pytest.mark.parametrize("ord", [1, 2, 3])
@pytest.mark.parametrize(("largest", "dtype"), [(3e38, "float32"), (1.5e308, "float64"), (3e38j, "complex64")])
def test_rule_4_finite_gradients_keep_their_direction_when_even_the_norm_overflows(system, largest, dtype, ord):
    if dtype not in system.dtypes:
        return
    raw = [largest, -largest, largest / 2]
    g = system.array(raw, dtype)
    unit = values(g) / np.abs(largest)
    for policy, c in itertools.product(("nan", "zero", "keep", "raise"), (1.0, 1e-6, 0.0)):
        clipped, norm = gradclip.clip_by_global_norm(g, c, ord=ord, nonfinite=policy)
        assert float(norm) == INF
        np.testing.assert_allclose(values(clipped), unit / oracle.norm([unit], ord) * c, rtol=1e-6)
    close(system, gradclip.clip_by_norm(g, 1.0, ord=ord), unit / oracle.norm([unit], ord))
    close(system, gradclip.clip_by_norm(g, 1.0, ord=ord, axis=0), unit / oracle.norm([unit], ord))


def test_rule_4_no_factor_is_subnormal(system):
    # The factor 1/3e38 has 20 bits left where subnormal numbers exist, and is 0 where they do not.
    g = system.array([3e38, 1e38, 0.0])
    c = 0.7
    close(system, gradclip.clip_by_global_norm(g, c).grads, np.array([3, 1, 0]) / math.sqrt(10) * c)
    close(system, gradclip.clip_by_norm([g, g], c)[1], np.array([3, 1, 0]) / math.sqrt(10) * c)
    close(system, gradclip.clip_by_norm(g, c, axis=0), np.array([3, 1, 0]) / math.sqrt(10) * c)


@pytest.mark.parametrize("ord", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "dtype"), [(1e20, "float32"), (1e-30, "float32"), (1e200, "float64"), (1e-200, "float64")]
)
def test_rule_4_slices_whose_powers_do_not_fit(system, size, dtype, ord):
    if dtype in system.dtypes:
        g = system.array(np.array([[3.0, -4.0], [0.0, 0.0], [1.0, 2.0]]) * size, dtype)
        want = oracle.clip_by_norm(values(g) / size, 1.5, ord, axis=1) * size
        np.testing.assert_allclose(values(gradclip.clip_by_norm(g, 1.5 * size, ord=ord, axis=1)), want, rtol=1e-6)


def test_rule_4_half_of_the_gradients_is_tiny(system):
    # The squares of the small ones vanish, and that is right: the norm is that of the large ones.
    arrays = [system.array([3.0, 4.0]), system.array(np.full(1000, 1e-25))]
    assert float(gradclip.global_norm(arrays)) == 5.0
    # Here nothing is large, and the squares of all vanish.
    assert float(gradclip.global_norm(arrays[1:])) == pytest.approx(1e-25 * math.sqrt(1000), rel=1e-6)


# Rule 5: thresholds checked ------------------------------------------------------------------------------------------

CLIPS = {
    "clip_by_global_norm": gradclip.clip_by_global_norm,
    "clip_by_norm": gradclip.clip_by_norm,
    "clip_by_norm, axis": lambda g, c: gradclip.clip_by_norm(g, c, axis=0),
    "clip_by_value": gradclip.clip_by_value,
}
IN_PLACE = [gradclip.clip_by_global_norm_, gradclip.clip_by_norm_, gradclip.clip_by_value_]


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_rule_5_bad_thresholds_are_refused(system, clip):
    g = system.array([3.0, 4.0])
    for bad in (-1.0, -1, -INF, NAN, np.float32(-1), np.array(-1.0), system.array(-1.0), system.array(NAN)):
        with pytest.raises(ValueError, match="must be ≥ 0, got"):
            clip(g, bad)
    for bad in (
        True,
        False,
        "1",
        None,
        1j,
        np.bool_(True),
        [1.0, 2.0, 3.0],
        {},
        system.array([1.0, 2.0]),
        np.array(True),
    ):
        with pytest.raises((TypeError, ValueError), match=r"must be a number|pair"):
            clip(g, bad)


def test_rule_5_bad_thresholds_are_refused_before_anything_is_written(in_place_system):
    for clip, bad in itertools.product(IN_PLACE, (-1.0, NAN, True, "1")):
        g = in_place_system.array([3.0, 4.0])
        with pytest.raises((TypeError, ValueError)):
            clip(g, bad)
        assert (values(g) == [3, 4]).all()


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_rule_5_zero_gives_zeros(system, clip):
    for dtype in system.reals:
        for raw in ([3.0, -4.0], [0.0, 0.0], [1e-30, 0.0], [30000.0, 40000.0]):
            clipped = clip(system.array(raw, dtype), 0.0)
            clipped = clipped.grads if isinstance(clipped, gradclip.Clipped) else clipped
            assert (values(clipped) == 0).all()


def test_rule_5_zero_of_huge_gradients(system):
    assert (values(gradclip.clip_by_global_norm(system.array([3e38, 3e38]), 0).grads) == 0).all()


@pytest.mark.parametrize("raw", [[3.0, 4.0], [0.0, 0.0], [INF, 1.0], [NAN, 1.0], [3e38, 3e38]])
def test_rule_5_inf_measures_and_changes_nothing(system, raw):
    g = system.array(raw)
    for policy in ("nan", "zero", "keep"):
        clipped, norm = gradclip.clip_by_global_norm(g, INF, nonfinite=policy)
        np.testing.assert_array_equal(values(clipped), values(g))
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(float(norm), np.float32(oracle.norm([values(g)])), rtol=1e-6)
    np.testing.assert_array_equal(values(gradclip.clip_by_norm(g, INF)), values(g))
    np.testing.assert_array_equal(values(gradclip.clip_by_norm(g, INF, axis=0)), values(g))
    if not np.isfinite(raw).all():
        with pytest.raises(gradclip.NonFiniteGradientError):
            gradclip.clip_by_global_norm(g, INF, nonfinite="raise")


def test_rule_5_thresholds_of_every_kind_of_number(system):
    g = system.array([3.0, 4.0])
    for c in (1, 1.0, np.float32(1), np.int64(1), np.array(1.0), system.array(1.0), system.array(1.0, "float16")):
        close(system, gradclip.clip_by_global_norm(g, c).grads, [0.6, 0.8])
        close(system, gradclip.clip_by_norm(g, c), [0.6, 0.8])
        close(system, gradclip.clip_by_value(g, c), [1, 1])


def test_rule_5_a_threshold_keeps_its_digits(system):
    if "float64" in system.dtypes:
        g = system.array([3.0, 4.0], "float64")
        np.testing.assert_allclose(values(gradclip.clip_by_global_norm(g, 0.1).grads), [0.06, 0.08], rtol=1e-15)


# Rule 6: non-finite gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
@pytest.mark.parametrize("ord", ORDERS)
def test_rule_6_policies(system, bad, ord):
    for dtype in system.dtypes:
        g = {"w": system.array([1.0, bad], dtype), "b": [system.array([[2.0]], dtype), None]}
        want = {"nan": NAN, "zero": 0.0}
        for policy in ("nan", "zero", "keep"):
            clipped, norm = gradclip.clip_by_global_norm(g, 1.0, ord=ord, nonfinite=policy)
            np.testing.assert_equal(float(norm), abs(bad))
            for got, was in ((clipped["w"], g["w"]), (clipped["b"][0], g["b"][0])):
                if policy == "keep":
                    assert bits(got) == bits(was)
                else:
                    np.testing.assert_array_equal(values(got).real, np.full(got.shape, want[policy]))
            assert clipped["b"][1] is None


def test_rule_6_nan_wins_over_infinity(system):
    for order in itertools.permutations([1.0, INF, NAN]):
        assert math.isnan(gradclip.global_norm(system.array(order)))
        assert math.isnan(gradclip.global_norm([system.array([x]) for x in order], ord=3))
        assert math.isnan(gradclip.global_norm(system.array(order), ord=INF))


def test_rule_6_raise_names_the_leaves(system):
    g = {
        "conv": Pair(system.array([1.0, INF]), system.array([1.0])),
        "out": [None, system.array([NAN]), system.array(NAN)],
    }
    with pytest.raises(gradclip.NonFiniteGradientError) as caught:
        gradclip.clip_by_global_norm(g, 1.0, nonfinite="raise")
    assert "grads['conv'].weight, grads['out'][1], grads['out'][2]" in str(caught.value)
    assert isinstance(caught.value, FloatingPointError)
    with pytest.raises(gradclip.NonFiniteGradientError, match="not finite: grads;"):
        gradclip.clip_by_global_norm(system.array([INF]), 1.0, nonfinite="raise")


def test_rule_6_raise_in_place_leaves_everything_unchanged(in_place_system):
    g = [in_place_system.array([3.0, 4.0]), in_place_system.array([NAN, 1.0])]
    before = [bits(a) for a in g]
    with pytest.raises(gradclip.NonFiniteGradientError):
        gradclip.clip_by_global_norm_(g, 1.0, nonfinite="raise")
    assert [bits(a) for a in g] == before


def test_rule_6_unknown_policies_are_refused(system):
    with pytest.raises(ValueError, match="nonfinite must be one of 'nan', 'zero', 'keep', 'raise', got 'ignore'"):
        gradclip.clip_by_global_norm(system.array([1.0]), 1.0, nonfinite="ignore")


def test_rule_6_a_given_norm(system):
    g = system.array([3.0, 4.0])
    for norm in (10.0, 10, np.float32(10), system.array(10.0)):
        clipped, returned = gradclip.clip_by_global_norm(g, 5.0, norm=norm)
        close(system, clipped, [1.5, 2.0])
        assert float(returned) == 10.0
        assert system.is_own(returned)
    assert bits(gradclip.clip_by_global_norm(g, 1.0, norm=0.5).grads) == bits(g)
    assert np.isnan(values(gradclip.clip_by_global_norm(g, 1.0, norm=NAN).grads)).all()
    assert (values(gradclip.clip_by_global_norm(g, 1.0, norm=INF, nonfinite="zero").grads) == 0).all()
    with pytest.raises(gradclip.NonFiniteGradientError, match="the given norm"):
        gradclip.clip_by_global_norm(g, 1.0, norm=INF, nonfinite="raise")
    with pytest.raises(ValueError, match="norm must be ≥ 0"):
        gradclip.clip_by_global_norm(g, 1.0, norm=-1.0)
    with pytest.raises(TypeError, match="norm must be a number"):
        gradclip.clip_by_global_norm(g, 1.0, norm="5")


# Rule 7: value clipping ----------------------------------------------------------------------------------------------


def test_rule_7_value_clipping(system):
    for dtype in system.reals:
        g = system.array([3.0, -4.0, 0.5, NAN, INF, -INF, 0.0], dtype)
        clipped = gradclip.clip_by_value(g, 1.0)
        assert dtype_name(clipped) == dtype
        np.testing.assert_array_equal(values(clipped), [1, -1, 0.5, NAN, 1, -1, 0])
        np.testing.assert_array_equal(values(gradclip.clip_by_value(g, (-2, 0.25)))[:3], [0.25, -2, 0.25])
        np.testing.assert_array_equal(values(gradclip.clip_by_value(g, (-INF, 1)))[:2], [1, -4])
        np.testing.assert_array_equal(values(gradclip.clip_by_value(g, INF)), values(g))
        np.testing.assert_array_equal(values(gradclip.clip_by_value(g, 1e300))[:4], values(g)[:4])
    np.testing.assert_array_equal(
        values(gradclip.clip_by_value(system.array([3.0, -4.0]), np.array(2, "uint8"))), [2, -2]
    )
    both = (system.array(-1.0), system.array(0.5))
    np.testing.assert_array_equal(values(gradclip.clip_by_value(system.array([3.0, -4.0]), both)), [0.5, -1])


def test_rule_7_bad_intervals_are_refused(system):
    g = system.array([3.0])
    for bad, message in (((1, -1), "low must be ≤ high"), ((NAN, 1), "low must not be NaN"), ((1,), "pair")):
        with pytest.raises(ValueError, match=message):
            gradclip.clip_by_value(g, bad)
    with pytest.raises(TypeError, match="low must be a number"):
        gradclip.clip_by_value(g, (None, 1))
    with pytest.raises(TypeError, match=r"grads has dtype complex64.*takes float16, bfloat16, float32, float64"):
        gradclip.clip_by_value(system.array([1j], "complex64"), 1.0)


# Rule 8: each array alone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ord", ORDERS)
def test_rule_8_each_array_by_its_own_norm(system, ord):
    for dtype in system.dtypes:
        arrays, exact = sample(system, dtype, (7, 5), (3,), (), (2, 2))
        clipped = gradclip.clip_by_norm(arrays, 1.5, ord=ord)
        for got, was in zip(clipped, exact, strict=True):
            assert dtype_name(got) == dtype
            close(system, got, oracle.clip_by_norm(was, 1.5, ord), dtype)


@pytest.mark.parametrize("axis", [0, 1, -1, (0,), (0, 2), (1, -1), (0, 1, 2)])
@pytest.mark.parametrize("ord", [1, 2, 3])
def test_rule_8_each_slice_by_its_own_norm(system, axis, ord):
    for dtype in system.dtypes:
        (g,), (exact,) = sample(system, dtype, (3, 4, 5))
        clipped = gradclip.clip_by_norm(g, 1.2, axis=axis, ord=ord)
        assert dtype_name(clipped) == dtype
        close(system, clipped, oracle.clip_by_norm(exact, 1.2, ord, axis), dtype)


def test_rule_8_slices_of_order_infinity(system):
    g = system.array([[3.0, -4.0], [0.5, 0.25]])
    close(system, gradclip.clip_by_norm(g, 1.0, ord=INF, axis=1), [[0.75, -1], [0.5, 0.25]])


def test_rule_8_zeros_stay_zeros_and_nan_stays_at_home(system):
    g = [system.array([0.0, 0.0]), system.array([NAN, 1.0]), system.array([INF, 1.0]), system.array([3.0, 4.0])]
    zero, nan, inf, fine = (values(a) for a in gradclip.clip_by_norm(g, 1.0))
    assert (zero == 0).all()
    assert np.isnan(nan).all()
    assert np.isnan(inf).all()
    np.testing.assert_allclose(fine, [0.6, 0.8], rtol=1e-6)
    rows = system.array([[0.0, 0.0], [NAN, 1.0], [INF, 1.0], [3.0, 4.0], [0.3, 0.4]])
    got = values(gradclip.clip_by_norm(rows, 1.0, axis=1))
    np.testing.assert_allclose(got, [[0, 0], [NAN, NAN], [NAN, NAN], [0.6, 0.8], [0.3, 0.4]], rtol=1e-6)


def test_rule_8_slices_within_the_threshold_keep_their_bits(system):
    (g,), _ = sample(system, "float32", (50, 4))
    assert bits(gradclip.clip_by_norm(g, 100.0, axis=1)) == bits(g)


@pytest.mark.parametrize(
    ("axis", "error"), [(2, ValueError), (-3, ValueError), ((0, 0), ValueError), (0.0, TypeError), (True, TypeError)]
)
def test_rule_8_bad_axes_are_refused(system, axis, error):
    with pytest.raises(error, match=r"axis"):
        gradclip.clip_by_norm({"w": system.array(np.ones((2, 2)))}, 1.0, axis=axis)


# Rule 9: adaptive clipping -------------------------------------------------------------------------------------------


def agc(g, w, factor, eps, unit_axis):
    """Brock et al. 2021, equation 3, in float64."""
    axes = tuple(i for i in range(g.ndim) if g.ndim < 2 or i != unit_axis % g.ndim)
    size = np.sqrt((np.abs(g) ** 2).sum(axes, keepdims=True))
    limit = factor * np.maximum(np.sqrt((np.abs(w) ** 2).sum(axes, keepdims=True)), eps)
    return np.where(size > limit, g * limit / np.where(size == 0, 1, size), g)


@pytest.mark.parametrize("unit_axis", [None, 0, 1, -1])
@pytest.mark.parametrize("shapes", [[(6, 5), (5,), ()], [(3, 2, 4, 5)]])
def test_rule_9_each_unit_by_its_weights(system, unit_axis, shapes):
    if unit_axis == 1 and len(shapes) > 1:
        shapes = shapes[:1]
    for dtype in system.dtypes:
        grads, g = sample(system, dtype, *shapes, seed=3)
        params, w = sample(system, dtype, *shapes, seed=4)
        params[0], w[0] = params[0] * 0, w[0] * 0  # weights of zero count as eps
        for factor, eps in ((0.5, 1e-3), (0.5, 2.0), (0.0, 1e-3), (100.0, 1e-3)):
            clipped = gradclip.clip_adaptive(grads, params, factor, eps=eps, unit_axis=unit_axis)
            for got, its_g, its_w in zip(clipped, g, w, strict=True):
                assert dtype_name(got) == dtype
                own = 0 if system.name == "torch" else -1
                want = agc(its_g, its_w, factor, eps, own if unit_axis is None else unit_axis)
                np.testing.assert_allclose(values(got), want, rtol=3 * EPS.get(dtype, 1e-6), atol=1e-7)


def test_rule_9_the_default_factor(system):
    g, w = system.array([3.0, 4.0]), system.array([0.0, 10.0])
    close(system, gradclip.clip_adaptive(g, w), [0.06, 0.08])


def test_rule_9_within_the_limit_nothing_changes(system):
    (g,), _ = sample(system, "float32", (8, 6))
    assert bits(gradclip.clip_adaptive(g, g, 1.0)) == bits(g)


def test_rule_9_units_that_are_not_finite_stay_alone(system):
    g = np.array([[NAN, 3.0], [1.0, 4.0]])
    got = values(gradclip.clip_adaptive(system.array(g), system.array(np.ones((2, 2))), 0.1, unit_axis=1))
    np.testing.assert_allclose(got, [[NAN, 0.06 * math.sqrt(2)], [NAN, 0.08 * math.sqrt(2)]], rtol=1e-6)


def test_rule_9_a_threshold_per_unit_that_no_float32_factor_reaches(system):
    g = system.array([[3e38, 1e38]])
    got = gradclip.clip_adaptive(g, system.array([[0.0, 0.0]]), 1.0, eps=0.7, unit_axis=0)
    close(system, got, np.array([[3, 1]]) / math.sqrt(10) * 0.7)


def test_rule_9_bad_arguments_are_refused(system):
    g, w = system.array(np.ones((2, 3))), system.array(np.ones((2, 3)))
    for error, message, call in (
        (ValueError, "clip_factor must be ≥ 0, got -1", lambda: gradclip.clip_adaptive(g, w, -1.0)),
        (ValueError, "eps must be ≥ 0, got nan", lambda: gradclip.clip_adaptive(g, w, eps=NAN)),
        (TypeError, "clip_factor must be a number", lambda: gradclip.clip_adaptive(g, w, "0.1")),
        (TypeError, "clip_factor must be a number", lambda: gradclip.clip_adaptive(g, w, True)),
        (ValueError, "structure of grads", lambda: gradclip.clip_adaptive([g], [w, w])),
        (ValueError, "structure of grads", lambda: gradclip.clip_adaptive({"a": g}, {"b": w})),
        (
            ValueError,
            r"shape \(2, 3\), its parameter \(3,\)",
            lambda: gradclip.clip_adaptive(g, system.array([1, 2, 3])),
        ),
        (TypeError, "is of type NoneType", lambda: gradclip.clip_adaptive([g], [None])),
        (ValueError, "no axis 2", lambda: gradclip.clip_adaptive(g, w, unit_axis=2)),
    ):
        with pytest.raises(error, match=message):
            call()
    clipped = gradclip.clip_adaptive({"a": None, "b": g}, {"a": w, "b": w}, 1.0)
    assert clipped["a"] is None


# Rule 10: sparse gradients -------------------------------------------------------------------------------------------

ROWS, INDICES = [[1.0, 2.0], [3.0, 4.0], [-0.5, 0.25]], [2, 0, 2]
DENSE = np.zeros((4, 2))
np.add.at(DENSE, INDICES, ROWS)


def sparse_torch(dtype=torch.float32):
    return torch.sparse_coo_tensor([INDICES], torch.tensor(ROWS, dtype=dtype), (4, 2), check_invariants=True)


def sparse_tensorflow(dtype=tf.float32):
    return tf.IndexedSlices(tf.constant(ROWS, dtype), tf.constant(INDICES), tf.constant([4, 2]))


SPARSE = {
    "torch": (sparse_torch, lambda x: x.to_dense().detach().numpy(), lambda x: x.is_sparse),
    "tensorflow": (
        sparse_tensorflow,
        lambda x: tf.convert_to_tensor(x).numpy(),
        lambda x: isinstance(x, tf.IndexedSlices) and len(x.indices) == 2,
    ),
}
SPARSE_CLIPS = {
    "global norm": lambda g, w: gradclip.clip_by_global_norm(g, 1.0).grads,
    "global norm, unclipped": lambda g, w: gradclip.clip_by_global_norm(g, 100.0).grads,
    "global norm 1": lambda g, w: gradclip.clip_by_global_norm(g, 1.0, ord=1).grads,
    "norm": lambda g, w: gradclip.clip_by_norm(g, 1.0),
    "norm, rows": lambda g, w: gradclip.clip_by_norm(g, 1.0, axis=1),
    "norm, columns": lambda g, w: gradclip.clip_by_norm(g, 1.0, axis=0),
    "value": lambda g, w: gradclip.clip_by_value(g, 1.0),
    "adaptive, rows": lambda g, w: gradclip.clip_adaptive(g, w, 0.2, unit_axis=0),
    "adaptive, columns": lambda g, w: gradclip.clip_adaptive(g, w, 0.2, unit_axis=1),
}


@pytest.mark.parametrize("clip", SPARSE_CLIPS.values(), ids=SPARSE_CLIPS)
@pytest.mark.parametrize("framework", SPARSE)
def test_rule_10_sparse_gradients_give_what_dense_ones_would(framework, clip):
    make, dense, stays_sparse = SPARSE[framework]
    weights = np.arange(8.0).reshape(4, 2)
    own_weights = torch.tensor(weights).float() if framework == "torch" else tf.constant(weights, tf.float32)
    got = clip(make(), own_weights)
    assert stays_sparse(got)
    np.testing.assert_allclose(dense(got), clip(DENSE, weights), rtol=1e-6)
    np.testing.assert_allclose(dense(make()), DENSE)  # the input is what it was


@pytest.mark.parametrize("framework", SPARSE)
def test_rule_10_the_norm_of_sparse_gradients(framework):
    g = SPARSE[framework][0]()
    other = torch.tensor([1.0]) if framework == "torch" else tf.constant([1.0])
    assert float(gradclip.global_norm([g, other])) == pytest.approx(oracle.norm([DENSE, [1.0]]), rel=1e-6)
    if framework == "tensorflow":  # whose own function takes the norm of the rows as they stand
        assert float(tf.clip_by_global_norm([g], 1.0)[1]) == pytest.approx(oracle.norm([ROWS]), rel=1e-6)
    with pytest.raises(ValueError, match="an interval without 0"):
        gradclip.clip_by_value(g, (0.5, 1.0))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rule_10_indexed_slices_in_a_graph(jit_compile):
    for clip in SPARSE_CLIPS.values():
        weights = tf.reshape(tf.range(8.0), (4, 2))
        graph = tf.function(
            lambda v, i, w, clip=clip: tf.convert_to_tensor(clip(tf.IndexedSlices(v, i, tf.constant([4, 2])), w)),
            jit_compile=jit_compile,
            autograph=False,
        )
        got = graph(tf.constant(ROWS), tf.constant(INDICES), weights)
        np.testing.assert_allclose(got, clip(DENSE, weights.numpy().astype(float)), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("coalesced", [False, True])
def test_rule_10_sparse_torch_in_place(coalesced):
    for in_place, functional in (
        (gradclip.clip_by_global_norm_, lambda g, c: gradclip.clip_by_global_norm(g, c).grads),
        (gradclip.clip_by_norm_, gradclip.clip_by_norm),
        (gradclip.clip_by_value_, gradclip.clip_by_value),
    ):
        g = sparse_torch().coalesce() if coalesced else sparse_torch()
        in_place(g, 1.0)
        assert g.is_sparse
        np.testing.assert_allclose(g.to_dense(), functional(DENSE, 1.0), rtol=1e-6)
    with pytest.raises(ValueError, match="sparse along several axes"):
        gradclip.clip_by_norm(torch.eye(3).to_sparse(), 1.0, axis=0)
    with pytest.raises(TypeError, match=r"layout torch\.sparse_csr"):
        gradclip.clip_by_norm(torch.eye(3).to_sparse_csr(), 1.0)


def test_rule_10_an_embedding_trains():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 1, 4])).sum().backward()
    norm = gradclip.clip_by_global_norm_([embedding.weight.grad], 1.0)
    assert float(norm) == pytest.approx(math.sqrt(3 * 4 + 3))
    torch.optim.SGD(embedding.parameters(), 0.1).step()


# Rule 11: functional and in place ------------------------------------------------------------------------------------


def test_rule_11_functional_forms_leave_their_input_alone(system):
    for clip, c in itertools.product(CLIPS.values(), (1.0, 100.0, 0.0, INF)):
        g = system.array([[3.0, 4.0], [1.0, 0.0]])
        before = bits(g)
        clipped = clip(g, c)
        clipped = clipped.grads if isinstance(clipped, gradclip.Clipped) else clipped
        assert bits(g) == before
        if system.in_place:  # elsewhere, arrays cannot be written to, and may be shared
            clipped[...] = 7.0
            assert bits(g) == before


def test_rule_11_in_place_forms_agree_with_functional_ones(in_place_system):
    for dtype, c in itertools.product(in_place_system.reals, (0.0, 0.5, 3.0, INF)):
        for functional, in_place in (
            (gradclip.clip_by_global_norm, gradclip.clip_by_global_norm_),
            (gradclip.clip_by_norm, gradclip.clip_by_norm_),
            (lambda g, c: gradclip.clip_by_norm(g, c, axis=0), lambda g, c: gradclip.clip_by_norm_(g, c, axis=0)),
            (gradclip.clip_by_value, gradclip.clip_by_value_),
        ):
            arrays, _ = sample(in_place_system, dtype, (5, 3), (4,))
            want = functional(arrays, c)
            want, norm = want if isinstance(want, gradclip.Clipped) else (want, None)
            returned = in_place(arrays, c)
            assert [bits(a) for a in arrays] == [bits(a) for a in want]
            assert returned is None or float(returned) == float(norm)


def test_rule_11_nothing_is_written_where_nothing_is_clipped(in_place_system):
    g = in_place_system.array(np.ones(10))
    if in_place_system.name == "torch":
        version = g._version
        gradclip.clip_by_global_norm_(g, 100.0)
        gradclip.clip_by_norm_(g, 100.0)
        assert g._version == version
    else:  # a page that cannot be written to: a write would end the process
        import mmap

        page = mmap.mmap(-1, mmap.PAGESIZE)
        page.write(np.ones(10, np.float32).tobytes())
        g = np.frombuffer(page, np.float32, 10)
        norm = gradclip.clip_by_global_norm_(g, 100.0)
        assert float(norm) == pytest.approx(math.sqrt(10))


def test_rule_11_the_same_array_twice_is_counted_and_scaled_once(in_place_system):
    g = in_place_system.array([3.0, 4.0])
    assert float(gradclip.clip_by_global_norm_([g, {"tied": g}], 1.0)) == 5.0
    close(in_place_system, g, [0.6, 0.8])


def test_rule_11_all_or_nothing(in_place_system):
    writable = in_place_system.array([3.0, 4.0])
    if in_place_system.name == "numpy":
        frozen = np.ones(3, np.float32)
        frozen.flags.writeable = False
        broadcast = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (3,), (0,))
        refused = [(frozen, "read-only"), (np.float32(3), "scalar"), (broadcast, "broadcast")]
    else:
        with torch.inference_mode():
            inference = torch.ones(3)
        expanded = torch.ones(1).expand(3)
        refused = [(torch.nn.Parameter(torch.ones(3)), "parameter"), (inference, "read-only"), (expanded, "expanded")]
        refused += [(torch.ones(3, requires_grad=True), "parameter")]
    refused += [
        (in_place_system.array([1]).astype(int) if in_place_system.name == "numpy" else torch.ones(1).int(), "int")
    ]
    for (bad, message), clip in itertools.product(refused, IN_PLACE):
        with pytest.raises(TypeError, match=message):
            clip([writable, bad], 0.5)
        assert (values(writable) == [3, 4]).all()


@pytest.mark.parametrize("clip", IN_PLACE)
def test_rule_11_in_place_where_arrays_cannot_be_written(clip):
    with pytest.raises(TypeError, match=rf"TensorFlow arrays cannot be written to: use {clip.__name__[:-1]}, without"):
        clip(tf.constant([1.0]), 1.0)


# Rule 14: mixtures ---------------------------------------------------------------------------------------------------


def test_rule_14_mixed_dtypes(system):
    arrays = [system.array([3, 0], dtype) for dtype in system.dtypes]
    clipped, norm = gradclip.clip_by_global_norm(arrays, 1.0)
    assert float(norm) == pytest.approx(3 * math.sqrt(len(arrays)), rel=1e-6)
    assert dtype_name(norm) == ("float64" if "float64" in system.dtypes else "float32")
    for got, dtype in zip(clipped, system.dtypes, strict=True):
        assert dtype_name(got) == dtype
        close(system, got, [1 / math.sqrt(len(arrays)), 0], dtype)


def test_rule_14_two_frameworks(system):
    other = np.ones(2, np.float32) if system.name != "numpy" else torch.ones(2)
    with pytest.raises(TypeError, match=r"grads\['b'\] is a .* array, grads\['a'\] a .* one"):
        gradclip.clip_by_global_norm({"a": system.array([1.0]), "b": other}, 1.0)


def test_rule_14_other_dtypes(system):
    name = {"numpy": np.array, "torch": torch.tensor, "tensorflow": tf.constant}.get(
        system.name, lambda x: jnp_array(x)
    )
    for bad, dtype in (([1, 2], "int"), ([True], "bool")):
        with pytest.raises(TypeError, match=rf"grads\[0\] has dtype {dtype}\d*; this function takes float16, bfloat16"):
            gradclip.global_norm([name(bad)])


def jnp_array(x):
    import jax.numpy as jnp

    return jnp.array(x)


@pytest.mark.parametrize("bad", ["text", 1.0, 3, object(), {"a": {1, 2}}, [b"x"], lambda: 0])
def test_rule_14_things_that_are_no_arrays(bad):
    with pytest.raises(TypeError, match=r"grads.* is of type \w+; gradclip takes arrays of NumPy"):
        gradclip.clip_by_global_norm(bad, 1.0)


def test_rule_14_object_arrays():
    with pytest.raises(TypeError, match="grads has dtype object"):
        gradclip.global_norm(np.array([1.0, None]))


# Rule 15: nothing there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [[], (), {}, None, [None, {"a": None}], iter([])])
def test_rule_15_no_arrays(empty):
    clipped, norm = gradclip.clip_by_global_norm(empty, 1.0)
    assert norm == 0.0
    assert norm.shape == ()
    assert clipped == ([] if isinstance(empty, type(iter([]))) else empty)
    assert gradclip.clip_by_global_norm_(empty, 1.0) == 0.0
    assert gradclip.global_norm(empty) == 0.0
    assert gradclip.clip_by_norm([], 1.0) == gradclip.clip_by_value([], 1.0) == []


def test_rule_15_no_arrays_but_a_threshold_of_the_framework(system):
    """A tree without arrays belongs to the framework of what is passed beside it."""
    c = system.array(2.0)
    for clipped, norm in (
        gradclip.clip_by_global_norm([None], c),
        gradclip.clip_by_global_norm([None], c, ord=3, nonfinite="raise"),
        gradclip.clip_by_global_norm([None], 1.0, norm=c),
    ):
        assert clipped == [None]
        assert system.is_own(norm)
    assert float(norm) == 2.0
    assert gradclip.clip_by_norm([None], c) == gradclip.clip_by_value([None], (-c, c)) == [None]
    assert gradclip.clip_adaptive([None], [None], c, eps=c) == gradclip.clip_by_value([None], c) == [None]
    if system.in_place:
        assert float(gradclip.clip_by_global_norm_([None], c)) == 0.0


@pytest.mark.parametrize("ord", ORDERS)
def test_rule_15_empty_arrays(system, ord):
    for shape, dtype in itertools.product(((0,), (3, 0), (0, 2, 1)), system.dtypes):
        nothing = system.array(np.zeros(shape), dtype)
        clipped, norm = gradclip.clip_by_global_norm([nothing], 1.0, ord=ord)
        assert float(norm) == 0.0
        assert dtype_name(norm) == ("float64" if dtype in ("float64", "complex128") else "float32")
        assert clipped[0].shape == nothing.shape
        clipped, norm = gradclip.clip_by_global_norm([nothing, system.array([3.0, 4.0])], 1.0, ord=ord)
        assert float(norm) == pytest.approx(oracle.norm([[3.0, 4.0]], ord), rel=1e-6)
        assert gradclip.clip_by_norm(nothing, 1.0, ord=ord).shape == nothing.shape
        for axis in range(len(shape)):
            assert gradclip.clip_by_norm(nothing, 1.0, ord=ord, axis=axis).shape == nothing.shape


@pytest.mark.parametrize("ord", ORDERS)
def test_rule_15_arrays_of_no_dimension(system, ord):
    clipped, norm = gradclip.clip_by_global_norm(system.array(-3.0), 1.0, ord=ord)
    assert float(norm) == pytest.approx(3, rel=1e-6)
    assert clipped.shape == ()
    close(system, clipped, -1.0)
    close(system, gradclip.clip_by_norm(system.array(-3.0), 1.0, ord=ord), -1.0)
    close(system, gradclip.clip_by_value(system.array(-3.0), 1.0), -1.0)


@pytest.mark.parametrize("shape", [(40, 50), (600, 700)])
@pytest.mark.parametrize("ord", [2, 3])
def test_rule_15_arrays_that_are_not_contiguous(in_place_system, shape, ord):
    raw = np.random.default_rng(2).standard_normal(shape)
    for dtype in in_place_system.dtypes:
        whole = in_place_system.array(raw, dtype)
        for view in (whole.T, whole[::3], whole[:, 1::7], whole.T[5:, ::2]):
            rest = values(whole).sum() - values(view).sum()
            want = oracle.clip_by_global_norm([values(view).copy()], 2.0, ord)[0]
            norm = oracle.norm([values(view)], ord)
            clipped = gradclip.clip_by_global_norm(view, 2.0, ord=ord)
            assert float(clipped.norm) == pytest.approx(norm, rel=1e-6)
            np.testing.assert_allclose(values(clipped.grads), want, rtol=EPS.get(dtype, 1e-6), atol=1e-7)
            assert float(gradclip.clip_by_global_norm_(view, 2.0, ord=ord)) == pytest.approx(norm, rel=1e-6)
            np.testing.assert_allclose(values(view), want, rtol=EPS.get(dtype, 1e-6), atol=1e-7)
            assert values(whole).sum() - values(view).sum() == pytest.approx(rest, rel=1e-9, abs=1e-9)


def test_numpy_scalars_and_subclasses():
    clipped, norm = gradclip.clip_by_global_norm([np.float32(3), np.float64(4)], 1.0)
    assert float(norm) == 5.0
    assert [float(c) for c in clipped] == pytest.approx([0.6, 0.8])
    assert gradclip.global_norm(np.ones(4, ml_dtypes.bfloat16)) == 2.0
    assert gradclip.global_norm(np.ones(4, ">f4")) == 2.0


# Trees ---------------------------------------------------------------------------------------------------------------


def test_the_result_has_the_structure_of_the_input(system):
    a = system.array
    tree = {
        "list": [a([3.0]), None],
        "tuple": (a([4.0]),),
        "named": Pair(a([0.0]), {"deep": a(0.0)}),
        "ordered": collections.OrderedDict(z=a([0.0]), y=None),
        "default": collections.defaultdict(list, k=a([0.0])),
        3: a([[0.0]]),
    }
    clipped, norm = gradclip.clip_by_global_norm(tree, 1.0)
    assert float(norm) == 5.0

    def kinds(node):
        if isinstance(node, dict):
            return type(node), [(k, kinds(v)) for k, v in node.items()]
        if isinstance(node, (list, tuple)):
            return type(node), [kinds(v) for v in node]
        return None if node is None else tuple(node.shape)

    assert kinds(clipped) == kinds(tree)
    assert clipped["default"].default_factory is list
    close(system, clipped["list"][0], [0.6])
    close(system, clipped["tuple"][0], [0.8])


def test_iterators_come_back_as_lists(system):
    arrays = [system.array([3.0]), None, system.array([4.0])]
    for iterable in (iter(arrays), (a for a in arrays), dict(enumerate(arrays)).values()):
        clipped, norm = gradclip.clip_by_global_norm(iterable, 1.0)
        assert type(clipped) is list
        assert float(norm) == 5.0
        assert clipped[1] is None
        close(system, clipped[2], [0.8])


def test_clipped_is_a_named_tuple(system):
    clipped = gradclip.clip_by_global_norm(system.array([3.0, 4.0]), 1.0)
    assert isinstance(clipped, tuple)
    assert clipped._fields == ("grads", "norm")


def test_the_public_names_are_documented():
    for name in gradclip.__all__:
        thing = getattr(gradclip, name)
        assert thing.__doc__
        if isinstance(thing, types.FunctionType):
            for section in ("Parameters", "Raises", "Examples"):
                assert f"{section}\n" in thing.__doc__, f"{name} has no section {section}"
