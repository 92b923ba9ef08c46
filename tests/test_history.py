"""NormHistory: its numbers against NumPy, its words, its picture, its state."""

import copy
import json
import math
import re

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex

import gradclip
from gradclip import NormHistory

mpl.use("Agg")

INF, NAN = math.inf, math.nan
RNG = np.random.default_rng(0)
NORMS = st.floats(0) | st.just(NAN)
THRESHOLDS = st.floats(0)


def recorded(norms, max_norms=1.0):
    history = NormHistory()
    for norm, max_norm in np.broadcast(norms, max_norms):
        history.record(norm, max_norm)
    return history


# Numbers --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(NORMS, THRESHOLDS), max_size=30), st.floats(0, 1))
@settings(deadline=None)
def test_the_numbers_are_numpys(steps, q):
    history = NormHistory()
    for norm, max_norm in steps:
        history.record(norm, max_norm)
    assert len(history) == len(steps)
    np.testing.assert_array_equal(history.norms, [n for n, _ in steps])
    np.testing.assert_array_equal(history.max_norms, [c for _, c in steps])
    assert history.clip_fraction == (np.mean([n > c for n, c in steps]) if steps else 0)
    finite = [n for n, _ in steps if np.isfinite(n)]
    want = np.quantile(finite, q) if finite else NAN
    np.testing.assert_array_equal(history.quantile(q), want)
    assert type(history.quantile(q)) is type(history.clip_fraction) is float
    history.summary()


def test_a_norm_at_its_threshold_is_not_clipped():
    assert recorded([1.0, np.nextafter(1.0, 2), 0.0, INF, NAN, INF], [1, 1, 0, INF, 1, 1]).clip_fraction == 2 / 6


@pytest.mark.parametrize("q", [-0.1, 1.1, NAN])
def test_quantiles_are_from_0_to_1(q):
    with pytest.raises(ValueError, match="q must be from 0 to 1, got"):
        recorded([1.0]).quantile(q)


def test_0_d_arrays_of_every_framework_are_recorded_as_floats(system):
    for dtype in system.reals:
        history = NormHistory()
        history.record(system.array(2.5, dtype), system.array(0.5, dtype))
        history.record(system.array(NAN, dtype), system.array(INF, dtype))
        assert str(history.norms) == "[2.5, nan]"
        assert str(history.max_norms) == "[0.5, inf]"


@pytest.mark.parametrize(
    ("norm", "max_norm", "error", "message"),
    [
        (-1.0, 1.0, ValueError, "norm must be ≥ 0, got -1.0"),
        (1.0, -1.0, ValueError, "max_norm must be ≥ 0, got -1.0 (a negative threshold would flip the update's sign)"),
        (1.0, NAN, ValueError, "max_norm must be ≥ 0, got nan"),
        ("1", 1.0, TypeError, "norm must be a number or a 0-d array, got '1' of type str"),
        (1.0, True, TypeError, "norm must be a number or a 0-d array, got True of type bool"),
        (1.0, None, TypeError, "norm must be a number or a 0-d array, got None of type NoneType"),
        (np.ones(2), 1.0, TypeError, "norm must be a number or a 0-d array, got an array of shape (2,)"),
    ],
)
def test_what_is_no_norm_or_threshold_is_refused_and_not_recorded(norm, max_norm, error, message):
    history = recorded([1.0])
    with pytest.raises(error, match=re.escape(message)):
        history.record(norm, max_norm)
    assert (history.norms, history.max_norms) == ([1.0], [1.0])


# Words ----------------------------------------------------------------------------------------------------------------


def test_nothing_recorded():
    assert NormHistory().summary() == "No step has been recorded."
    assert NormHistory().clip_fraction == 0
    assert math.isnan(NormHistory().quantile(0.5))
    assert len(NormHistory()) == 0


def test_a_calm_run_is_summed_up_in_two_lines():
    assert recorded([2.0, 1.0, 0.5, 0.5, 4.0, 0.5, 0.5, 0.5], 3.0).summary().splitlines() == [
        "8 steps. Norm: median 0.5, 90th percentile 2.6, largest 4 (step 4).",
        "Clipped: 1 step (12.5%).",
    ]


@pytest.mark.parametrize(("clipped", "said"), [(49, False), (50, False), (51, True), (100, True)])
def test_more_than_half_clipped_asks_for_a_lower_learning_rate(clipped, said):
    summary = recorded(RNG.permutation([2.0] * clipped + [0.9] * (100 - clipped))).summary()
    assert f"Clipped: {clipped} steps ({clipped}%)." in summary
    for sentence in ("That is more than half.", "With SGD, the threshold then sets the length", "Adam divides by"):
        assert (sentence in summary) == said


def test_none_clipped_names_a_threshold_that_would_clip_one_in_ten():
    norms = np.linspace(0.5, 0.7, 101)
    assert "Clipped: none. The threshold changed nothing; if the loss spikes, lower it. 0.68, the 90th" in (
        recorded(norms).summary()
    )
    assert "Clipped: none, for no step had a threshold. 0.68, the 90th percentile, is a start." in (
        recorded(norms, INF).summary()
    )


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e307])
def test_rising_and_falling_norms_are_told(scale):
    rising = np.linspace(1, 3, 300) * RNG.lognormal(sigma=0.3, size=300)
    first, last = np.median(rising[:100]), np.median(rising[-100:])
    pattern = r"The norm (\w+): median (\S+) in the first third, (\S+) in the last\. (.*)"
    for norms, medians, verb, advice in [
        (rising, (first, last), "rose", "If the loss rises too, lower the learning rate."),
        (
            rising[::-1],
            (last, first),
            "fell",
            "A fixed threshold clips ever less; those of gradclip.thresholds follow the norm.",
        ),
    ]:
        said = re.fullmatch(pattern, recorded(norms * scale, 2 * scale).summary().splitlines()[-1]).groups()
        assert (said[0], said[3]) == (verb, advice)
        np.testing.assert_allclose(np.array(said[1:3], float) / scale, medians, rtol=0.01)


def test_only_a_fixed_threshold_is_called_fixed():
    falling = np.linspace(4, 1, 60)
    assert "fixed" in recorded(falling, 2.0).summary()
    assert "fixed" not in recorded(falling, np.linspace(3, 2, 60)).summary()
    assert "fixed" not in recorded(falling, INF).summary()


@pytest.mark.parametrize(
    "norms",
    [
        [1.0] * 300,
        [0.0] * 300,
        np.linspace(1, 2.7, 300),  # the medians are 1.3 and 2.4: less than twice
        [1, 4, 4],  # too few to tell
        np.geomspace(1, 100, 9),
        [1] * 149 + [50, 50] + [1] * 149,  # a spike
        [1] * 100 + [9] * 100 + [1] * 100,  # up and down again
        [9] * 49 + [1] * 51 + [9] * 50 + [0.1] * 50 + [2] * 51 + [0.1] * 49,  # medians go up, ranks go down
    ],
)
def test_no_trend_is_told_where_there_is_none(norms):
    assert "The norm" not in recorded(norms).summary()


def test_twice_the_median_is_enough():
    assert "The norm rose: median 1 in the first third, 2 in the last." in recorded([1] * 50 + [2] * 50).summary()


def test_norms_from_0_up_rise():
    assert "The norm rose: median 0 in the first third, 1 in the last." in recorded([0] * 100 + [1] * 100).summary()


def spearman(norms):
    """The correlation of ranks, equal norms sharing the mean of theirs, by counting."""
    ranks = [np.mean(norms < n) + np.mean(norms <= n) for n in norms]
    return np.corrcoef(ranks, np.arange(len(norms)))[0, 1]


def test_a_trend_is_told_where_both_conditions_hold():
    told = []
    for _ in range(300):
        size = RNG.integers(3, 40)
        norms = np.round(RNG.lognormal(sigma=1, size=size) * np.exp(RNG.normal() * np.linspace(0, 2, size)), 1)
        first, last = np.median(norms[: size // 3]), np.median(norms[-(size // 3) :])
        rho, far = spearman(norms) if np.ptp(norms) else 0, abs(np.log2(max(last, 1e-9) / max(first, 1e-9))) >= 1
        trend = np.sign(last - first) if far and np.sign(last - first) * rho * np.sqrt(size - 1) > 3 else 0
        summary = recorded(norms).summary()
        assert ("The norm rose" in summary, "The norm fell" in summary) == (trend > 0, trend < 0)
        told.append(trend)
    assert min(told.count(t) for t in (-1, 0, 1)) > 20


def test_a_norm_without_a_trend_is_rarely_said_to_have_one():
    said = sum("The norm" in recorded(RNG.lognormal(sigma=1, size=30)).summary() for _ in range(500))
    assert said < 5


def test_norms_that_are_not_finite_are_counted_and_the_first_is_named():
    norms = np.ones(20)
    norms[[7, 9]], norms[12] = NAN, INF
    assert recorded(norms, 2.0).summary().splitlines() == [
        "20 steps. Norm: median 1, 90th percentile 1, largest 1 (step 0).",
        "Clipped: 1 step (5%).",
        'Not finite: 3 steps (2 NaN, 1 infinite), first step 7. To see which arrays, clip with nonfinite="raise".',
    ]


@pytest.mark.parametrize("max_norm", [0.0, 1.0, INF])
def test_norms_of_0_alone_advise_no_threshold(max_norm):
    said = recorded([0.0] * 20, max_norm).summary()
    assert "Clipped: none, for every norm was 0: was it measured after the gradients had been set to zero?" in said
    assert "is a start" not in said


def test_a_percentile_of_0_is_no_threshold_to_start_with():
    assert "is a start" not in recorded([0.0] * 99 + [1.0], 2.0).summary()


@pytest.mark.parametrize("max_norm", [1.0, INF])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_without_a_finite_norm_nothing_is_said_of_the_threshold(bad, max_norm):
    said = recorded([bad] * 5, max_norm).summary()
    assert "changed nothing" not in said
    assert "is a start" not in said


def test_a_threshold_of_0_is_called_what_it_is():
    assert "A threshold of 0 makes every gradient 0." in recorded([1.0] * 5, 0.0).summary()


@pytest.mark.parametrize(
    ("clipped", "percent"), [(10_000, "100%"), (9_999, "more than 99.9%"), (9_980, "99.8%"), (1, "0.01%")]
)
def test_all_is_said_of_all_alone(clipped, percent):
    assert f"({percent})" in recorded([2.0] * clipped + [0.5] * (10_000 - clipped)).summary()


def test_a_run_of_nan_alone_has_no_quantiles_to_name():
    assert recorded([NAN], INF).summary().splitlines() == [
        "1 step.",
        "Clipped: none, for no norm was finite.",
        'Not finite: 1 step (1 NaN, 0 infinite), first step 0. To see which arrays, clip with nonfinite="raise".',
    ]


# The picture ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def plt():
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def by_label(ax):
    return {re.sub(r" \(.*", "", line.get_label()): line for line in ax.lines}


def test_the_plot_shows_norms_thresholds_and_what_was_clipped(plt):
    norms, max_norms = [1.0, 5.0, 0.5, 8.0, 0.0, NAN, INF, 3.0], [2.0, 2.0, 2.0, 4.0, 4.0, 4.0, 4.0, INF]
    ax = recorded(norms, max_norms).plot()
    lines = by_label(ax)
    np.testing.assert_array_equal(lines["norm before clipping"].get_ydata(), [1, 5, 0.5, 8, NAN, NAN, NAN, 3])
    np.testing.assert_array_equal(lines["threshold"].get_ydata(), [2, 2, 2, 4, 4, 4, 4, NAN])
    np.testing.assert_array_equal(lines["clipped"].get_xydata()[:2], [[1, 5], [3, 8]])
    assert lines["clipped"].get_label() == "clipped (37.5% of the steps)"
    assert lines["norm of 0"].get_xdata().tolist() == [4]
    assert lines["norm not finite"].get_xdata().tolist() == [5, 6]
    cuts = ax.lines[1].get_xydata().reshape(-1, 3, 2)
    np.testing.assert_array_equal(cuts[:2, :2], [[[1, 5], [1, 2]], [[3, 8], [3, 4]]])
    assert np.isnan(cuts[:, 2, 1]).all()


def test_the_axes_are_labelled_and_logarithmic_with_a_legend(plt):
    ax = recorded([1.0, 5.0], 2.0).plot()
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "norm of the gradient", "log")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["norm before clipping", "clipped (50% of the steps)", "threshold"]


def test_the_ends_of_the_axis_hold_what_it_cannot_show(plt):
    ax = recorded([20.0, 0.0, NAN], 50.0).plot()
    assert ax.get_ylim()[0] > 10  # the marks do not stretch the axis
    for name, end in (("norm of 0", 0), ("norm not finite", 1)):
        (y,) = by_label(ax)[name].get_ydata()
        assert by_label(ax)[name].get_transform().transform((0, y))[1] == ax.transAxes.transform((0, end))[1]


def test_plot_draws_where_it_is_told_and_nowhere_else(plt):
    _, (left, right) = plt.subplots(1, 2)
    assert recorded([1.0, 2.0]).plot(left) is left
    assert recorded([1.0, 2.0]).plot(ax=left) is left
    assert not right.lines
    assert len(plt.get_fignums()) == 1
    assert recorded([1.0]).plot().figure is not left.figure


@pytest.mark.parametrize("style", ["default", "book/book.mplstyle"])
@pytest.mark.parametrize(
    ("norms", "max_norms"),
    [([], []), ([0.0], 0.0), ([NAN, INF], INF), ([INF, 1.0, 0.0], 0.0), ([1.0] * 3, INF), ([1e-45, 3e38], 1.0)],
)
def test_every_history_can_be_drawn_in_every_style(plt, tmp_path, style, norms, max_norms, request):
    path = style if style == "default" else request.config.rootpath / style
    with plt.style.context(path):
        ax = recorded(norms, max_norms).plot()
        ax.figure.savefig(tmp_path / "norms.png")


def test_blue_for_clipped_and_black_dashes_for_the_threshold_as_in_the_book(plt):
    lines = by_label(recorded([1.0, 5.0, NAN], 2.0).plot())
    assert to_hex(lines["clipped"].get_color()) == "#0072b2"
    assert to_hex(lines["norm not finite"].get_color()) == "#d55e00"
    assert (lines["threshold"].get_color(), lines["threshold"].get_linestyle()) == ("black", "--")


# The state ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(NORMS, THRESHOLDS), max_size=20))
@settings(deadline=None)
def test_the_state_is_exact_through_json(steps):
    history, again = NormHistory(), recorded([9.0, 9.0])
    for norm, max_norm in steps:
        history.record(norm, max_norm)
    text = json.dumps(history.state_dict(), allow_nan=False)
    again.load_state_dict(json.loads(text))
    assert str((again.norms, again.max_norms)) == str((history.norms, history.max_norms))
    assert {type(x) for x in again.norms + again.max_norms} <= {float}


def test_the_state_by_hand():
    state = recorded([0.5, NAN, INF], [INF, 1.0, 0.0]).state_dict()
    assert state == {"norms": [0.5, "nan", "inf"], "max_norms": ["inf", 1.0, 0.0]}


def test_the_state_is_a_copy():
    history, again = recorded([1.0, 2.0]), NormHistory()
    state = history.state_dict()
    kept = copy.deepcopy(state)
    again.load_state_dict(state)
    history.record(3.0, 1.0)
    again.record(4.0, 1.0)
    assert state == kept
    assert history.norms == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (None, TypeError, "the state of a NormHistory must be a dict, got None of type NoneType"),
        ({"norms": []}, ValueError, "the state of a NormHistory has the keys norms, max_norms, got norms"),
        ({"history": []}, ValueError, "has the keys norms, max_norms, got history"),
        ({"norms": [1.0], "max_norms": []}, ValueError, "must be as long as each other, got 1 and 0"),
        ({"norms": 1.0, "max_norms": []}, TypeError, "norms must be a list of numbers, got 1.0 of type float"),
        ({"norms": [1.0], "max_norms": "inf"}, TypeError, "max_norms must be a list of numbers, got 'inf'"),
        ({"norms": ["1.0"], "max_norms": [1.0]}, TypeError, "norms must be a number or a 0-d array, got '1.0'"),
        ({"norms": [-1.0], "max_norms": [1.0]}, ValueError, "norms must be ≥ 0, got -1.0"),
        ({"norms": [1.0], "max_norms": ["nan"]}, ValueError, "max_norms must be ≥ 0, got nan"),
        ({"norms": [1.0], "max_norms": [True]}, TypeError, "max_norms must be a number or a 0-d array, got True"),
    ],
)
def test_a_wrong_state_is_refused_and_nothing_changed(state, error, message):
    history = recorded([1.0, 2.0])
    with pytest.raises(error, match=re.escape(message)):
        history.load_state_dict(state)
    assert (history.norms, history.max_norms) == ([1.0, 2.0], [1.0, 1.0])


def test_a_run_is_recorded_as_it_goes(system):
    threshold, history = gradclip.thresholds.MovingAverage(warmup=2), NormHistory()
    for size in (1.0, 1.0, 1.0, 50.0, 1.0):
        norm = gradclip.global_norm([system.array([size])])
        history.record(norm, threshold.update(norm))
    assert history.max_norms[:4] == [INF, INF, 2.0, 2.0]
    assert history.clip_fraction == 0.2


# Steps, losses, tables, comparison ------------------------------------------------------------------------------------


def full_history():
    history = NormHistory()
    for step, norm in enumerate([0.5, NAN, INF, 1 / 3]):
        history.record(norm, max_norm=1.0, step=10 * step, loss=2.0 - step, learning_rate=0.1)
    return history


def numbers(history):
    return str([getattr(history, name) for name in ("steps", "norms", "max_norms", "losses", "learning_rates")])


def test_steps_losses_and_learning_rates_are_recorded_where_they_are_given(system):
    history = NormHistory()
    history.record(0.5, 1.0)
    history.record(0.5, 1.0, step=10, loss=system.array(2.5), learning_rate=1)
    history.record(0.5, 1.0)
    assert history.steps == [0, 10, 11]
    assert str((history.losses, history.learning_rates)) == "([nan, 2.5, nan], [nan, 1.0, nan])"
    assert {type(x) for x in history.losses + history.learning_rates} == {float}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"step": -1}, ValueError, "step must be ≥ 0, got -1"),
        ({"step": 1.5}, TypeError, "step must be an integer, got 1.5"),
        ({"loss": "2"}, TypeError, "loss must be a number or a 0-d array, got '2'"),
        ({"learning_rate": [1]}, TypeError, "learning_rate must be a number or a 0-d array, got [1]"),
    ],
)
def test_a_wrong_step_loss_or_rate_is_refused_and_nothing_recorded(given, error, message):
    history = NormHistory()
    with pytest.raises(error, match=re.escape(message)):
        history.record(1.0, 1.0, **given)
    assert numbers(history) == "[[], [], [], [], []]"


def test_steps_are_what_the_summary_and_the_plot_count_by(plt):
    history = NormHistory()
    for step, norm in [(10, 0.5), (20, 3.0), (30, NAN)]:
        history.record(norm, 1.0, step=step)
    said = history.summary()
    assert "largest 3 (step 20)" in said
    assert "first step 30" in said
    assert list(by_label(history.plot())["norm before clipping"].get_xdata()) == [10, 20, 30]


def test_the_whole_state_is_exact_through_json_and_an_old_one_is_taken():
    history, again = full_history(), NormHistory()
    again.load_state_dict(json.loads(json.dumps(history.state_dict(), allow_nan=False)))
    assert numbers(again) == numbers(history)
    again.load_state_dict({"norms": [0.5, "nan"], "max_norms": ["inf", 1.0]})
    assert (again.steps, str(again.losses), str(again.learning_rates)) == ([0, 1], "[nan, nan]", "[nan, nan]")
    again.record(1.0, 1.0)
    assert again.steps == [0, 1, 2]


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"steps": [1]}, ValueError, "norms and steps must be as long as each other, got 2 and 1"),
        ({"steps": [1, -2]}, ValueError, "steps must be ≥ 0, got -2"),
        ({"losses": [1.0, "2"]}, TypeError, "losses must be a number"),
        ({"learning_rates": 1.0}, TypeError, "learning_rates must be a list of numbers"),
        ({"history": []}, ValueError, "has the keys norms, max_norms, got norms, max_norms, history"),
    ],
)
def test_a_wrong_addition_to_a_state_is_refused_and_nothing_changed(more, error, message):
    history = full_history()
    before = numbers(history)
    with pytest.raises(error, match=re.escape(message)):
        history.load_state_dict({"norms": [1.0, 2.0], "max_norms": [1.0, 1.0], **more})
    assert numbers(history) == before


def test_a_table_comes_back_as_it_was(tmp_path):
    for history in (full_history(), recorded([0.5, 2.0])):
        history.to_csv(tmp_path / "norms.csv")
        assert numbers(NormHistory.from_csv(tmp_path / "norms.csv")) == numbers(history)
    assert (tmp_path / "norms.csv").read_text() == "step,norm,max_norm\n0,0.5,1.0\n1,2.0,1.0\n"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("step,norm\n1,2\n", "must have the columns step, norm, max_norm, loss, learning_rate, got step, norm"),
        ("", "got none"),
        ("step,norm,max_norm\n0,1,1\n1,x,1\n", "norms.csv, line 3: could not convert string to float: 'x'"),
        ("step,norm,max_norm\n0,-1,1\n", "norms.csv, line 2: norm must be ≥ 0, got -1.0"),
        ("step,norm,max_norm\n0,1\n", "norms.csv, line 2: "),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(tmp_path, table, message):
    (tmp_path / "norms.csv").write_text(table)
    with pytest.raises(ValueError, match=re.escape(message)):
        NormHistory.from_csv(tmp_path / "norms.csv")


def test_records_side_by_side():
    falling = recorded(np.geomspace(8, 1, 90), 2.0)
    table = NormHistory.compare({"calm": recorded([0.5] * 9), "a falling one": falling, "empty": NormHistory()})
    assert [line.split() for line in table.splitlines()] == [
        ["run", "steps", "median", "90%", "largest", "clipped", "drift"],
        ["calm", "9", "0.5", "0.5", "0.5", "0%", "–"],
        ["a", "falling", "one", "90", "2.83", "6.5", "8", "66.7%", "×", "0.246"],
        ["empty", "0", "nan", "nan", "nan", "0%", "–"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1
