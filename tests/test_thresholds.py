"""Adaptive thresholds against their formulas, written here again in NumPy; their states; their errors."""

import copy
import itertools
import json
import math
import pickle
import re
import types
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip
from gradclip.thresholds import MovingAverage, Percentile, ZScore

INF, NAN = math.inf, math.nan
NORMS = st.lists(st.floats(0, 1e308), min_size=1, max_size=60)
SPIKY = np.random.default_rng(0).lognormal(sigma=0.5, size=400) * np.where(np.arange(400) % 37 == 36, 20, 1)
KINDS = [
    lambda: Percentile(),
    lambda: Percentile(75, window=7),
    lambda: ZScore(),
    lambda: ZScore(1.5, alpha=0.8, warmup=5, cap=1.2),
    lambda: ZScore(clip_option="percentile", skip_update_on_spike=True),
    lambda: ZScore(clip_option="mean"),
    lambda: MovingAverage(),
    lambda: MovingAverage(1.5, alpha=0.9, warmup=10),
]
each_kind = pytest.mark.parametrize(
    "make", KINDS, ids=["Percentile", "p7", "ZScore", "z5", "skip", "mean", "MovingAverage", "ma10"]
)


def updates(threshold, norms):
    return [threshold.update(n) for n in norms]


# The formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 1, 2, 7, 1000])
@pytest.mark.parametrize("percentile", [0, 10, 33.3, 50, 90, 99.9, 100])
def test_percentile_is_numpys_of_the_history_to_the_last_bit(percentile, window):
    want = [np.percentile(SPIKY[max(0, i - (window or i)) : i], percentile) for i in range(1, len(SPIKY) + 1)]
    assert updates(Percentile(percentile, window=window), SPIKY) == want


@given(NORMS, st.floats(0, 100), st.none() | st.integers(1, 70))
@settings(deadline=None)
def test_percentile_is_numpys_for_any_norms(norms, percentile, window):
    got = updates(Percentile(percentile, window=window), norms)
    assert got[-1] == np.percentile(norms[-window:] if window else norms, percentile)


def test_percentile_holds_its_window_and_no_more():
    """Norms that drift, up or down, leave nothing behind of those that have left the window."""
    for drift in (1.01, 0.99):
        threshold = Percentile(30, window=50)
        updates(threshold, 1e3 * drift ** np.arange(200))
        size = len(pickle.dumps(threshold))
        updates(threshold, 1e3 * drift ** np.arange(200, 5000))
        assert len(pickle.dumps(threshold)) < 4 * size


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=200), st.integers(1, 9), st.floats(0, 100))
@settings(deadline=None)
def test_percentile_of_norms_that_repeat(norms, window, percentile):
    got = updates(Percentile(percentile, window=window), norms)
    assert got == [np.percentile(norms[max(0, i - window) : i], percentile) for i in range(1, len(norms) + 1)]


def test_a_long_history_is_loaded_whole_and_continued():
    norms = np.random.default_rng(1).lognormal(size=100_000)
    threshold = Percentile(10)
    threshold.load_state_dict({"history": norms[:-3].tolist()})
    assert updates(threshold, norms[-3:]) == [np.percentile(norms[:end], 10) for end in (-2, -1, None)]


def zscore(norms, z, alpha, warmup, cap=INF):
    """Kumar et al. 2025, as their algorithm stands."""
    mean, variance, thresholds = np.mean(norms[:warmup]), np.var(norms[:warmup]), [min(INF, cap)] * warmup
    for n in norms[warmup:]:
        s = (n - mean) / np.sqrt(variance)
        threshold = mean + z**2 / s * np.sqrt(variance) if s > z else INF
        learned = threshold if s > z else n
        mean = alpha * mean + (1 - alpha) * learned
        variance = alpha * variance + (1 - alpha) * (learned - mean) ** 2
        thresholds.append(min(threshold, cap))
    return thresholds


@pytest.mark.parametrize(("z", "alpha", "warmup"), [(2.5, 0.97, 25), (1, 0.5, 2), (0.5, 0.9, 10), (4, 0.999, 100)])
@pytest.mark.parametrize("cap", [None, 3, 0.5])
def test_zscore_is_its_algorithm(z, alpha, warmup, cap):
    got = updates(ZScore(z, alpha=alpha, warmup=warmup, cap=cap), SPIKY)
    np.testing.assert_allclose(got, zscore(SPIKY, z, alpha, warmup, INF if cap is None else cap), rtol=1e-11)
    clipped = np.array(got[warmup:]) < SPIKY[warmup:]
    assert 5 < clipped.sum() < len(SPIKY) - warmup or cap == 0.5


def test_zscore_by_hand():
    threshold = ZScore(z=2, alpha=0.5, warmup=2)
    assert updates(threshold, [1, 3]) == [INF, INF]  # mean 2, deviation 1
    assert threshold.update(12) == pytest.approx(2.4)  # s = 10, so 2 + 4/10; learned as 2.4: mean 2.2, variance 0.52
    assert threshold.update(2.2 + 2 * math.sqrt(0.52) - 1e-9) == INF


def test_zscore_at_z_exactly_is_not_clipped():
    threshold = ZScore(z=2.5, warmup=2)
    updates(threshold, [1, 3])
    assert copy.deepcopy(threshold).update(4.5) == INF
    assert threshold.update(4.5 + 1e-9) == pytest.approx(4.5)


def test_the_farther_out_the_lower_the_threshold_of_zscore():
    threshold = ZScore(warmup=2)
    updates(threshold, [1, 3])
    far = [copy.deepcopy(threshold).update(n) for n in (5, 10, 100, 1e10, INF)]
    assert far == sorted(far, reverse=True)
    assert far[-1] == 2.0


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e-200, 1e300])
def test_norms_all_alike_have_no_deviation_and_what_is_above_is_clipped_to_them(constant):
    threshold = ZScore(warmup=25)
    assert updates(threshold, [constant] * 200) == [INF] * 200
    assert copy.deepcopy(threshold).update(constant / 2) == INF
    assert threshold.update(2 * constant + 1) == constant


def test_each_clip_option_of_zscore_by_hand():
    """After 1 and 3 the mean is 2 and the deviation 1; 12 lies ten deviations out, and 2 pass."""
    for clip_option, want in [("adaptive_scaling", 2.4), ("percentile", 4.0), ("mean", 2.0)]:
        threshold = ZScore(z=2, alpha=0.5, warmup=2, clip_option=clip_option)
        updates(threshold, [1, 3])
        assert copy.deepcopy(threshold).update(4) == INF
        assert copy.deepcopy(threshold).update(NAN) == {"percentile": 4.0}.get(clip_option, 2.0)
        assert threshold.update(12) == pytest.approx(want)
        assert threshold.state_dict()["mean"] == pytest.approx((2 + want) / 2)  # the threshold is learned


@pytest.mark.parametrize("clip_option", ["adaptive_scaling", "percentile", "mean"])
def test_a_spike_that_is_skipped_is_not_learned(clip_option):
    threshold = ZScore(clip_option=clip_option, skip_update_on_spike=True)
    updates(threshold, SPIKY[:30])
    before = threshold.state_dict()
    assert threshold.update(1000) < 1000
    assert threshold.state_dict() == before
    assert threshold.update(before["mean"]) == INF
    assert threshold.state_dict() != before


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_zscore_keeps_its_digits_where_squares_leave_the_range_of_float64(scale):
    got = np.array(updates(ZScore(), SPIKY * scale)) / scale
    np.testing.assert_allclose(got, updates(ZScore(), SPIKY), rtol=1e-11)


def test_the_cap_is_not_learned():
    capped, free = ZScore(cap=0.5), ZScore()
    updates(capped, SPIKY)
    updates(free, SPIKY)
    assert capped.state_dict() == free.state_dict()


def moving_average(norms, factor, alpha, warmup):
    """In the warm-up, the mean of the clipped norms so far, weighted α^(age); after it, μ ← αμ + (1−α)n'."""
    average, learned, thresholds = None, [], []
    for t, n in enumerate(norms, start=1):
        thresholds.append(factor * average if t > warmup else INF)
        learned.append(n if average is None else min(n, factor * average))
        if t <= warmup:
            average = np.average(learned, weights=alpha ** np.arange(t - 1, -1, -1.0))
        else:
            average = alpha * average + (1 - alpha) * learned[-1]
    return thresholds


@pytest.mark.parametrize(
    ("factor", "alpha", "warmup"), [(2, 0.98, 100), (1.05, 0.9, 1), (1.5, 0, 3), (3, 0.999, 250), (0.9, 0.5, 4)]
)
def test_moving_average_is_its_formula(factor, alpha, warmup):
    got = updates(MovingAverage(factor, alpha=alpha, warmup=warmup), SPIKY)
    np.testing.assert_allclose(got, moving_average(SPIKY, factor, alpha, warmup), rtol=1e-11)
    assert any(got < SPIKY)


def test_moving_average_of_a_constant_is_the_constant():
    assert updates(MovingAverage(2.0, warmup=100), [0.1] * 300) == [INF] * 100 + [0.2] * 200


def test_a_spike_moves_the_average_no_more_than_a_norm_at_the_threshold():
    spike, at_threshold = MovingAverage(warmup=3), MovingAverage(warmup=3)
    updates(spike, [1, 1, 1, 1e6, 1])
    updates(at_threshold, [1, 1, 1, 2, 1])
    assert spike.state_dict() == at_threshold.state_dict()


def test_norms_of_0_do_not_hold_the_average_at_0_for_good():
    threshold = MovingAverage(2.0, alpha=0.5, warmup=2)
    assert updates(threshold, [0, 0, 0, 4, 1]) == [INF, INF, INF, INF, 4.0]  # half of 4, twice


@each_kind
@given(norms=st.lists(st.floats(0) | st.just(NAN), max_size=60))
@settings(deadline=None, max_examples=50)
def test_whatever_comes_thresholds_are_numbers_from_0_and_states_are_json(make, norms):
    threshold = make()
    for n in norms:
        got = threshold.update(n)
        assert type(got) is float
        assert got >= 0
    json.dumps(threshold.state_dict(), allow_nan=False)


# NaN and infinity -----------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_is_never_learned_from(make, bad):
    clean, dirty = make(), make()
    for n in SPIKY:
        before = dirty.state_dict()
        dirty.update(bad)
        assert dirty.state_dict() == before
        assert dirty.update(n) == clean.update(n)


@each_kind
@pytest.mark.parametrize("bad", [NAN, INF])
def test_before_any_finite_norm_there_is_no_threshold_but_the_cap(make, bad):
    threshold = make()
    assert updates(threshold, [bad] * 300) == [getattr(threshold, "cap", None) or INF] * 300


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_gets_the_threshold_of_the_last_finite_norms(bad):
    norms = SPIKY[:200]
    percentile, zscore, average = Percentile(90), ZScore(), MovingAverage()
    last, *_ = updates(percentile, norms)[-1], updates(zscore, norms), updates(average, norms)
    assert percentile.update(bad) == last == np.percentile(norms, 90)
    assert average.update(bad) == copy.deepcopy(average).update(1.0) == 2 * average.state_dict()["average"]
    assert zscore.update(bad) == zscore.state_dict()["mean"]  # the limit for norms ever farther out
    assert zscore.update(bad) == copy.deepcopy(zscore).update(1e300)


@each_kind
def test_a_policy_for_nan_gradients_holds_after_the_warm_up(make):
    threshold = make()
    updates(threshold, SPIKY)
    grads = [np.array([NAN, 1.0])]
    norm = gradclip.global_norm(grads)
    clipped, _ = gradclip.clip_by_global_norm(grads, threshold.update(norm), norm=norm, nonfinite="zero")
    assert clipped[0].tolist() == [0.0, 0.0]


# States ---------------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("steps", [0, 1, 3, 5, 24, 25, 26, 60, 101, 250])
def test_a_run_resumes_bit_for_bit_from_json(make, steps):
    whole, resumed = make(), make()
    updates(whole, SPIKY[:steps])
    updates(resumed, SPIKY[::-1])  # what it knew before must not matter
    text = json.dumps(whole.state_dict(), allow_nan=False)
    resumed.load_state_dict(json.loads(text))
    assert json.dumps(resumed.state_dict()) == text
    assert updates(resumed, SPIKY[steps:]) == updates(whole, SPIKY[steps:])


@each_kind
def test_a_state_is_a_copy(make):
    threshold, other = make(), make()
    updates(threshold, SPIKY[:30])
    state = threshold.state_dict()
    kept = copy.deepcopy(state)
    other.load_state_dict(state)
    updates(threshold, SPIKY)
    updates(other, SPIKY)
    assert state == kept


def test_states_are_plain_numbers_and_lists_of_them():
    for make in KINDS:
        threshold = make()
        for n in itertools.chain([np.float32(1.5)], SPIKY[:50]):
            threshold.update(n)
        for entry in threshold.state_dict().values():
            numbers = entry if type(entry) is list else [entry]
            assert {type(x) for x in numbers} <= {int, float}


def test_a_history_longer_than_the_window_gives_its_latest_norms():
    wide, narrow = Percentile(50), Percentile(50, window=3)
    updates(wide, [1, 2, 3, 4, 5])
    narrow.load_state_dict(wide.state_dict())
    assert narrow.state_dict() == {"history": [3.0, 4.0, 5.0]}
    assert narrow.update(100) == 5.0


BROKEN = [
    (Percentile, [], TypeError, "the state of a Percentile must be a dict, got [] of type list"),
    (Percentile, {}, ValueError, "the state of a Percentile has the keys history, got none"),
    (Percentile, {"history": [], "more": 1}, ValueError, "has the keys history, got history, more"),
    (Percentile, {"count": 1, "average": 1.0}, ValueError, "has the keys history, got count, average"),
    (Percentile, {"history": 1.0}, TypeError, "history must be a list of numbers, got 1.0 of type float"),
    (Percentile, {"history": [1.0, "2"]}, TypeError, "history must be a number or a 0-d array, got '2' of type str"),
    (Percentile, {"history": [1.0, True]}, TypeError, "history must be a number"),
    (Percentile, {"history": [1.0, -1.0]}, ValueError, "history must be ≥ 0, got -1.0"),
    (Percentile, {"history": [1.0, NAN]}, ValueError, "history must be finite, got nan"),
    (ZScore, {"count": 3, "mean": 1.0}, ValueError, "the state of a ZScore has the keys count, mean, deviation"),
    (ZScore, {"count": 3.0, "mean": 1.0, "deviation": 1.0}, TypeError, "count must be an integer, got 3.0"),
    (ZScore, {"count": True, "mean": 1.0, "deviation": 1.0}, TypeError, "count must be an integer, got True"),
    (ZScore, {"count": -1, "mean": 1.0, "deviation": 1.0}, ValueError, "count must be ≥ 0, got -1"),
    (ZScore, {"count": 3, "mean": INF, "deviation": 1.0}, ValueError, "mean and deviation must be finite, got inf"),
    (ZScore, {"count": 3, "mean": 1.0, "deviation": -1.0}, ValueError, "mean and deviation must be ≥ 0, got -1.0"),
    (ZScore, {"count": 3, "mean": 1.0, "deviation": None}, TypeError, "mean and deviation must be a number"),
    (MovingAverage, {"count": 3}, ValueError, "the state of a MovingAverage has the keys count, average, got count"),
    (MovingAverage, {"count": "3", "average": 1.0}, TypeError, "count must be an integer, got '3' of type str"),
    (MovingAverage, {"count": 3, "average": NAN}, ValueError, "average must be finite, got nan"),
    (MovingAverage, {"count": 3, "average": [1.0]}, TypeError, "average must be a number"),
]


@pytest.mark.parametrize(("kind", "state", "error", "message"), BROKEN)
def test_a_wrong_state_is_refused_and_nothing_changed(kind, state, error, message):
    threshold = kind()
    updates(threshold, SPIKY[:40])
    before = threshold.state_dict()
    with pytest.raises(error, match=re.escape(message)):
        threshold.load_state_dict(state)
    assert threshold.state_dict() == before


# Arguments ------------------------------------------------------------------------------------------------------------


def test_0_d_arrays_of_every_framework_are_norms(system):
    for dtype in system.reals:
        for make in KINDS:
            by_array, by_float = make(), make()
            for n in (0.5, 1.0, 0.25, 3.0, 0.75, 16.0, 1.25):
                assert by_array.update(system.array(n, dtype)) == by_float.update(n)


def test_one_loop_for_every_framework(system):
    threshold, sizes = gradclip.thresholds.ZScore(warmup=3), (1.0, 1.5, 1.0, 1.25, 40.0, 1.25)
    for size, limit in zip(sizes, zscore(sizes, 2.5, 0.97, 3), strict=True):
        grads = {"w": system.array([0.6 * size, 0.0]), "b": system.array([0.8 * size])}
        norm = gradclip.global_norm(grads)
        grads, _ = gradclip.clip_by_global_norm(grads, threshold.update(norm), norm=norm)
        assert float(gradclip.global_norm(grads)) == pytest.approx(min(size, limit))


@pytest.mark.filterwarnings("error")
def test_a_norm_that_can_be_differentiated_is_read_without_a_warning():
    import torch

    assert Percentile().update(torch.tensor(2.0, requires_grad=True)) == 2.0


def test_every_kind_of_number_is_a_norm():
    for n in (2, 2.0, np.float16(2), np.int8(2), np.array(2), np.array(2.0, ">f4"), Fraction(2)):
        assert Percentile().update(n) == 2.0


@each_kind
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (-1.0, ValueError, "norm must be ≥ 0, got -1.0"),
        (-INF, ValueError, "norm must be ≥ 0, got -inf"),
        (np.float32(-2), ValueError, "norm must be ≥ 0, got -2.0"),
        ("1.0", TypeError, "norm must be a number or a 0-d array, got '1.0' of type str"),
        (np.array("1.0"), TypeError, "norm must be a number or a 0-d array"),
        (True, TypeError, "norm must be a number or a 0-d array, got True of type bool"),
        (np.True_, TypeError, "norm must be a number or a 0-d array"),
        (None, TypeError, "norm must be a number or a 0-d array, got None of type NoneType"),
        (1j, TypeError, "norm must be a number or a 0-d array, got 1j of type complex"),
        (np.complex64(1), TypeError, "norm must be a number or a 0-d array"),
        (np.ones(1), TypeError, "norm must be a number or a 0-d array, got an array of shape (1,)"),
        ([1.0], TypeError, "norm must be a number or a 0-d array, got [1.0] of type list"),
    ],
)
def test_what_is_no_norm_is_refused_and_not_learned(make, bad, error, message):
    threshold = make()
    updates(threshold, SPIKY[:5])
    before = threshold.state_dict()
    with pytest.raises(error, match=re.escape(message)):
        threshold.update(bad)
    assert threshold.state_dict() == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Percentile(-1), "percentile must be from 0 to 100, got -1.0"),
        (lambda: Percentile(100.1), "percentile must be from 0 to 100, got 100.1"),
        (lambda: Percentile(NAN), "percentile must be from 0 to 100, got nan"),
        (lambda: Percentile(window=0), "window must be ≥ 1, got 0 (the history must hold a norm)"),
        (lambda: ZScore(0), "z must be finite and > 0, got 0.0"),
        (lambda: ZScore(-2.5), "z must be finite and > 0, got -2.5"),
        (lambda: ZScore(NAN), "z must be finite and > 0, got nan"),
        (lambda: ZScore(INF), "z must be finite and > 0, got inf"),
        (lambda: ZScore(alpha=1), "alpha must be in [0, 1), got 1.0"),
        (lambda: ZScore(alpha=-0.1), "alpha must be in [0, 1), got -0.1"),
        (lambda: ZScore(alpha=NAN), "alpha must be in [0, 1), got nan"),
        (lambda: ZScore(warmup=0), "warmup must be ≥ 1, got 0 (the first norm has none before it"),
        (lambda: ZScore(cap=-1), "cap must be ≥ 0, got -1.0 (a negative threshold would flip the update's sign)"),
        (lambda: ZScore(cap=NAN), "cap must be ≥ 0, got nan"),
        (
            lambda: ZScore(clip_option="zscore"),
            "clip_option must be one of 'adaptive_scaling', 'percentile', 'mean', got",
        ),
        (lambda: Percentile(10**400), "percentile is an integer beyond the range of float64"),
        (lambda: MovingAverage(0), "factor must be finite and > 0, got 0.0"),
        (lambda: MovingAverage(INF), "factor must be finite and > 0, got inf"),
        (lambda: MovingAverage(alpha=1.5), "alpha must be in [0, 1), got 1.5"),
        (lambda: MovingAverage(warmup=-3), "warmup must be ≥ 1, got -3"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("bad", [True, "1", [1], 1j])
@pytest.mark.parametrize("name", ["percentile", "window", "z", "alpha", "warmup", "cap", "factor"])
def test_settings_that_are_no_numbers_are_refused(name, bad):
    kinds = {"percentile": Percentile, "window": Percentile, "factor": MovingAverage}
    with pytest.raises(TypeError, match=f"{name} must be a"):
        kinds.get(name, ZScore)(**{name: bad})


@pytest.mark.parametrize("make", [lambda: Percentile(window=2.0), lambda: ZScore(warmup=2.5)])
def test_counts_are_integers(make):
    with pytest.raises(TypeError, match="must be an integer"):
        make()


@pytest.mark.parametrize("bad", [1, None, "yes"])
def test_skipping_is_on_or_off(bad):
    with pytest.raises(TypeError, match="skip_update_on_spike must be True or False"):
        ZScore(skip_update_on_spike=bad)


def test_the_names_are_where_they_are_promised_and_documented():
    assert isinstance(gradclip.thresholds, types.ModuleType)
    assert set(gradclip.thresholds.__all__) == {"Percentile", "ZScore", "MovingAverage"}
    for name in gradclip.thresholds.__all__:
        for section in ("Parameters", "Raises", "References", "Examples"):
            assert f"{section}\n" in getattr(gradclip.thresholds, name).__doc__
