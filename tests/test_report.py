"""python -m gradclip report: the verdict on runs of every kind, and how it is printed."""

import io
import json
import math
import re
import sys

import numpy as np
import pytest

from gradclip import __main__ as command
from gradclip import report, runs
from gradclip.report import page, picture
from gradclip.report.facts import BEFORE, SPIKE, Facts
from gradclip.report.verdict import RULES, judge, number, percent

NAN = math.nan


def noisy(level, count=400, spread=0.3, seed=0):
    """Norms around a level, which may be one for each step."""
    return level * np.exp(spread * np.random.default_rng(seed).normal(size=count))


def bfloat16(x):
    """Rounded to 8 significant bits."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def run_of(norms, max_norm=1.0, losses=None, steps=None, source="argument", **more):
    run = runs.Run()
    count = len(norms)
    run.norms, run.max_norms = [float(x) for x in norms], [float(x) for x in np.broadcast_to(max_norm, count)]
    run.steps = list(range(count)) if steps is None else list(steps)
    run.losses = [NAN] * count if losses is None else [float(x) for x in losses]
    run.learning_rates = [NAN] * count
    run.path, run.format, run.key, run.max_norm_source, run.rows = "log", "CSV", "grad_norm", source, count
    for name, value in more.items():
        setattr(run, name, value)
    return run


def findings(run, **more):
    return {one.name: one for one in judge(Facts(run, **more))}


def spiky(norms, places, factor=20.0):
    norms = norms.copy()
    norms[places] *= factor
    return norms


FALLING = 2 + 2 * np.exp(-np.arange(400) / 80) + 0.02 * np.random.default_rng(1).normal(size=400)
SCALES = np.repeat([65536.0, 32768.0, 65536.0, 16384.0], 100)
STEADY = noisy(0.4)

# A run of each kind, and all that the rules find in it.
KINDS = {
    "a safety net": (run_of(noisy(0.55), losses=FALLING), {"safety net"}),
    "a threshold that never acts": (run_of(noisy(0.1)), {"never clips"}),
    "a brake": (run_of(noisy(0.9)), {"brake"}),
    "a strong brake": (run_of(noisy(1.2)), {"strong brake"}),
    "a normaliser": (run_of(noisy(6)), {"normaliser"}),
    "no threshold": (run_of(noisy(1), math.inf), {"no threshold"}),
    "a threshold of 0": (run_of(noisy(1), 0), {"threshold 0"}),
    "a norm that rises while the loss falls": (
        run_of(noisy(np.geomspace(0.2, 2, 400)), losses=FALLING),
        {"brake", "rises"},
    ),
    "a norm that rises, with no losses": (run_of(noisy(np.geomspace(0.2, 2, 400))), {"brake", "rises"}),
    "a norm that rises with the loss": (
        run_of(noisy(np.geomspace(0.2, 2, 400)), losses=FALLING[::-1]),
        {"brake", "rises with the loss"},
    ),
    "a norm that falls": (run_of(noisy(np.geomspace(2, 0.2, 400)), losses=FALLING), {"brake", "falls"}),
    "spikes": (run_of(spiky(STEADY, [100, 200, 300]), losses=FALLING), {"safety net", "spikes"}),
    "a large start": (run_of(spiky(STEADY, slice(0, 9), 10)), {"safety net", "largest first"}),
    "constant at the threshold": (run_of(np.minimum(noisy(60), 40), 40), {"after clipping"}),
    "constant at a threshold that is not known": (run_of(np.full(60, 40.0), source="assumed"), {"after clipping"}),
    "mostly below the threshold that it was clipped to": (run_of(np.minimum(noisy(0.6), 1.0)), {"after clipping"}),
    "all zero": (run_of(np.zeros(60)), {"all zero"}),
    "some zeros": (run_of(np.where(np.arange(400) % 8, STEADY, 0)), {"safety net", "some zeros"}),
    "never unscaled, at a scale that moves": (run_of(SCALES * noisy(0.1), loss_scales=list(SCALES)), {"not unscaled"}),
    "never unscaled, at one scale": (run_of(65536 * noisy(0.1), loss_scales=[65536.0] * 400), {"not unscaled"}),
    "unscaled, at a scale that moves": (run_of(STEADY, loss_scales=list(SCALES)), {"safety net"}),
    "very large": (run_of(noisy(2e5)), {"very large", "normaliser"}),
    "rounded to bfloat16": (run_of(bfloat16(STEADY)), {"never clips", "bfloat16"}),
    "rounded to three decimals": (run_of(STEADY.round(3)), {"safety net"}),
    "whole numbers": (run_of(noisy(60).round(), 100), {"safety net"}),
    "resumed pieces that overlap": (run_of(STEADY, superseded=7), {"safety net", "resumed"}),
    "two runs in a file": (run_of(STEADY, other_runs=[30]), {"safety net", "several runs"}),
    "rows that cannot be read": (run_of(STEADY, bad_rows=1, first_bad=401), {"safety net", "bad rows"}),
    "means": (run_of(STEADY, averaged="the mean of ten"), {"safety net", "averaged"}),
    "one norm in ten": (run_of(STEADY, steps=range(0, 4000, 10)), {"safety net", "sparse"}),
    "a few norms": (run_of(STEADY[:12]), {"never clips", "too few"}),
    "NaN now and then": (run_of(np.where(np.arange(400) % 100 == 50, NAN, STEADY)), {"safety net", "not finite"}),
    "NaN to the end": (run_of(np.where(np.arange(400) < 300, STEADY, NAN)), {"safety net", "lost"}),
    "NaN from the start": (run_of([NAN] * 9), {"lost"}),
    "overflows of a dynamic loss scale": (
        run_of(np.where(np.arange(400) % 100 == 50, np.inf, STEADY), loss_scales=[1024.0] * 400),
        {"safety net", "overflows"},
    ),
    "skipped steps in the log": (run_of(STEADY, skipped=3), {"safety net", "overflows"}),
}
SAID = {  # the numbers that the sentences must have
    "a safety net": "The threshold 1 clips 2% of the norms, by a median factor of 1.",
    "a threshold that never acts": "The threshold 1 never clips: the largest norm is 0.",
    "a normaliser": "clips 100% of the norms, by a median factor of 5.",
    "constant at the threshold": "of the norms equal the largest, 40: they were measured after clipping to 40",
    "all zero": "Every one of the 60 norms is 0",
    "never unscaled, at a scale that moves": "The norm follows the loss scale",
    "never unscaled, at one scale": "Divided by the scale, the median is about 0.0985.",
    "NaN now and then": "4 norms were not finite, the first at step 50",
    "NaN to the end": "From step 300 on, no norm is finite",
    "resumed pieces that overlap": "7 norms of steps logged again later were left out",
    "two runs in a file": "this file holds 2 runs. The longest is judged here; left out: 30 norms.",
    "a norm that rises while the loss falls": "while the loss fell. That alone is not divergence",
    "rows that cannot be read": "1 row could not be read, the first at 401.",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_verdict_on_each_kind_of_run(kind):
    run, names = KINDS[kind]
    found = findings(run)
    assert found.keys() == names
    if kind in SAID:
        assert SAID[kind] in " ".join(one.says for one in found.values())
    for one in found.values():
        text = f"{one.says} {one.advice}"
        assert not re.search(r"\b(nan|inf)\b(?! here)|\{|\}|  ", text.replace("threshold 0", "")), text
        assert one.says.endswith(".")


def test_every_rule_has_a_run_that_it_finds_a_reason_and_a_source():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert {name for _, names in KINDS.values() for name in names} == {rule.name for rule in RULES}
    for rule in RULES:
        assert rule.reason.endswith(".")
        assert len(rule.source) > 5


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("level", [0.02, 0.4])
def test_healthy_runs_raise_no_alarm(seed, level):
    """Long-tailed norms of which few exceed the threshold, a loss that falls, rounded as logs round."""
    losses = 3 * np.exp(-np.arange(300) / 100) + noisy(1, 300, 0.02, seed)
    norms = noisy(level * (1 + np.exp(-np.arange(300) / 30)), 300, 0.3, seed).round(4)
    found = findings(run_of(norms, losses=losses))
    assert {one.level for one in found.values()} <= {"good", "note"}
    assert found.keys() <= {"safety net", "never clips", "largest first", "spikes"}


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.2])
@pytest.mark.parametrize(("level", "digits"), [(0.4, 1), (0.05, 3), (0.012, 3), (0.08, 2), (0.6, 2)])
def test_norms_that_a_log_rounds_are_not_taken_for_clipped_ones(spread, level, digits):
    for seed in range(5):
        found = findings(run_of(noisy(level, 300, spread, seed).round(digits)))
        assert found.keys() <= {"safety net", "never clips", "spikes", "some zeros"}


def test_what_is_wrong_comes_first_and_silences_what_would_judge_it():
    order = [one.name for one in judge(Facts(run_of(np.where(np.arange(400) < 300, STEADY, NAN), bad_rows=1)))]
    assert order == ["lost", "bad rows", "safety net"]
    lying = judge(Facts(run_of(np.minimum(spiky(noisy(60), [99], 20), 40), 40, averaged="the mean of ten")))
    assert [one.name for one in lying] == ["after clipping", "averaged"]


@pytest.mark.parametrize(
    ("optimizer", "adam", "sgd"),
    [("adamw_torch", True, False), ("SGD", False, True), ("", True, True), ("own", True, True)],
)
def test_advice_is_by_the_optimizer_where_it_is_known(optimizer, adam, sgd):
    advice = findings(run_of(noisy(6)), optimizer=optimizer)["normaliser"].advice
    assert ("With Adam and its kin" in advice, "With SGD" in advice) == (adam, sgd)


def test_spikes_by_a_plain_loop():
    norms = spiky(noisy(0.4, 300, 0.5, 3), [40, 41, 200], 9)
    want = [i for i in range(BEFORE, 300) if norms[i] > SPIKE * np.median(norms[i - BEFORE : i])]
    found = Facts(run_of(norms)).spikes
    assert [one.step for one in found] == want
    assert len(want) >= 3
    assert all(one.loss_rose is None for one in found)


def test_what_the_loss_did_is_compared_with_the_base_rate():
    """After each spike the loss stays high for ten steps, as it does not elsewhere."""
    places = np.arange(50, 1950, 50)
    norms, losses = spiky(noisy(0.4, 2000), places), noisy(1, 2000, 0.01, 2)
    for place in places:
        losses[place + 1 : place + 11] += 1
    facts = Facts(run_of(norms, losses=losses))
    assert facts.rose == (len(places), len(places))
    assert 0.05 < facts.base_rate < 0.5
    assert facts.rose_by_chance < 1e-6
    assert "more often than chance" in findings(facts.run)["spikes"].says
    calm = findings(run_of(norms, losses=noisy(1, 2000, 0.01, 2)))["spikes"].says
    assert "no more often than chance" in calm


def test_the_binomial_tail_by_hand():
    facts = Facts(run_of(STEADY))
    facts.__dict__.update(rose=(2, 3), base_rate=0.5)
    assert facts.rose_by_chance == pytest.approx(0.5)
    facts = Facts(run_of(STEADY))
    facts.__dict__.update(rose=(3, 3), base_rate=0.1)
    assert facts.rose_by_chance == pytest.approx(1e-3)


@pytest.mark.parametrize("share", report.SHARES)
def test_a_proposed_threshold_clips_the_share_that_it_names(share):
    facts = Facts(run_of(noisy(3, 1000)))
    assert np.mean(facts.norms > facts.quantile(share)) == pytest.approx(share, abs=2e-3)


def test_numbers_and_shares_as_they_are_printed():
    assert [number(x) for x in (0.34567, 67.593, 1234.5, 17224.7, 3.4e6, 1e-9)] == [
        "0.346", "67.6", "1230", "17200", "3.4e+06", "1e-09",
    ]  # fmt: skip
    assert [percent(x) for x in (0, 0.001, 0.5, 0.9999, 1)] == ["0%", "less than 1%", "50%", "more than 99%", "100%"]


# The picture ----------------------------------------------------------------------------------------------------------

PICTURES = {
    "many": noisy(0.4, 5000),
    "one": [0.5],
    "two": [0.5, 2.0],
    "all equal": [1.0] * 30,
    "gaps": [NAN, 0.0, 0.5, math.inf, 1e-30, 7.0],
    "fifty decades": np.geomspace(1e-30, 1e20, 60),
}


@pytest.mark.parametrize("max_norm", [1.0, 1e9, math.inf, 0.0])
@pytest.mark.parametrize("kind", PICTURES)
def test_the_picture_fits_80_columns(kind, max_norm):
    drawn = picture.draw(Facts(run_of(PICTURES[kind], max_norm)))
    assert max(map(len, drawn.splitlines())) <= 80
    assert "•" in drawn
    assert "\x1b" not in drawn


def test_the_picture_by_hand():
    facts = Facts(run_of([0.1, 1.0, 10.0, NAN, 100.0], 10.0))
    drawn = picture.draw(facts, width=14, height=7).splitlines()
    assert drawn == [
        "    100 ┤   ×•",
        "        │",
        "     10 ┼──•──",
        "        │",
        "      1 ┤ •",
        "        │",
        "    0.1 ┤•",
        "        └─────",
        "         step 0",
        "clipped │    █",
    ]


def test_no_positive_norm_has_no_picture():
    assert picture.draw(Facts(run_of([0.0, NAN]))) == ""


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    """Writes norms as JSON lines, and returns where."""

    def write(norms, name="log.jsonl", **more):
        rows = ({"step": i, "grad_norm": float(norm), **more} for i, norm in enumerate(norms))
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_the_exit_code_says_whether_something_is_wrong(log, capsys):
    good, lying = log(STEADY), log(np.zeros(50), "zeros.jsonl")
    assert report.main([good]) == report.FINE == 0
    assert report.main([good, lying]) == report.WRONG == 1
    assert report.main([good, lying, "nowhere"]) == report.UNREADABLE == 2
    assert "error: nowhere: No such file or directory\n" in capsys.readouterr().err
    for wrong in ([], ["log", "--max-norm", "-1"], ["log", "--max-norm", "x"]):
        with pytest.raises(SystemExit) as stopped:
            report.main(wrong)
        assert stopped.value.code == 2
    assert command.report([good]) == 0


def test_the_report_in_words(log, capsys):
    path = log(spiky(STEADY, [100, 200]))
    report.main([path])
    said = capsys.readouterr().out
    joined = " ".join(said.split())
    for text in (
        "JSON lines, 'grad_norm', 400 norms, steps 0 to 399.",
        "✓ The threshold 1, assumed here since most trainers have it, clips less than 1%",
        "Thresholds that would have clipped 1%:",
        "step 100: norm",
        "Thin evidence: Most spikes pass",
    ):
        assert text in joined, text
    assert max(len(line) for line in said.splitlines() if path not in line) <= 80
    assert "Evidence:" not in said
    report.main([path, "--why", "--max-norm", "2"])
    joined = " ".join(capsys.readouterr().out.split())
    assert "✓ The threshold 2 clips" in joined
    assert "Why: The playbook aims at clipping the highest tenth. Evidence: moderate (Godbole" in joined


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals_that_want_it(log, monkeypatch, terminal, environment, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", out)
    report.main([log(noisy(0.9))])
    assert ("\x1b[" in out.getvalue()) == coloured
    assert out.getvalue().count("\x1b[0m") == len(re.findall(r"\x1b\[(?!0m)", out.getvalue()))


def test_an_output_without_these_characters_gets_others(log, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "cp1252", write_through=True))
    report.main([log(spiky(STEADY, [100]))])
    said = raw.getvalue().decode("cp1252")
    assert "1 +" in said
    assert "?" not in said


def test_json_is_strict_and_its_keys_stay(log, capsys):
    norms = np.where(np.arange(400) < 300, STEADY, NAN)
    assert report.main([log(norms, loss=1.5), "nowhere", "--json"]) == 2
    told = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    run, error = told["runs"]
    assert error == {"path": "nowhere", "error": "nowhere: No such file or directory"}
    assert list(run) == [
        "path", "format", "key", "norms", "norms_finite", "rows", "bad_rows", "first_bad", "superseded", "other_runs",
        "skipped", "first_step", "last_step", "interval", "averaged", "optimizer", "trusted", "max_norm",
        "max_norm_source", "clip_fraction", "clip_factor", "quantiles", "thresholds", "drift", "loss_drift", "spikes",
        "spikes_with_loss_rise", "spikes_with_loss", "base_rate", "findings", "notes",
    ]  # fmt: skip
    assert (run["norms"], run["norms_finite"], run["max_norm_source"]) == (400, 300, "assumed")
    assert list(run["findings"][0]) == ["name", "about", "level", "says", "advice", "reason", "source", "evidence"]
    assert [one["name"] for one in run["findings"]] == ["lost", "safety net"]


def test_runs_are_compared_and_a_checkpoint_is_found_in_its_run(log, capsys):
    whole, part, other = log(STEADY, "a.jsonl"), log(STEADY[:100], "b.jsonl"), log(noisy(6), "c.jsonl")
    report.main([whole, part, other])
    table = capsys.readouterr().out.split("\n\n\n")[-1].splitlines()
    assert [line.split()[0] for line in table[:4]] == ["run", "a.jsonl", "b.jsonl", "c.jsonl"]
    assert [line.split()[1] for line in table[1:4]] == ["400", "100", "400"]
    assert table[4:] == ["b.jsonl is the beginning of a.jsonl: they are one run."]


def test_names_of_runs_are_as_long_as_it_takes_to_tell_them_apart():
    names = report.shortened(["x/one/state.json", "x/two/state.json"])
    assert list(names.values()) == ["one/state.json", "two/state.json"]
    assert report.shortened(["a" * 40 + ".csv"], 10) == {"a" * 40 + ".csv": "…aaaaa.csv"}


def test_each_example_log_can_be_reported(pytestconfig, capsys, tmp_path):
    folder = pytestconfig.rootpath / "book" / "snippets" / "logs"
    paths = [str(path) for path in sorted(folder.iterdir()) if path.name != "espnet.txt"]
    assert report.main([*paths, "--html", str(tmp_path / "all.html")]) == report.WRONG  # RLlib's, after clipping
    assert capsys.readouterr().out.count(" norms, ") >= len(paths)
    assert (tmp_path / "all.html").read_text(encoding="utf-8").count("<figure") == len(paths)


# The page: what is in it; tests/site looks at it in a browser ---------------------------------------------------------


def test_the_page_has_no_link_to_anything_and_escapes_what_logs_say(log):
    facts = Facts(run_of(STEADY, path="</script><b>&.csv", key="<i>", format="CSV"))
    html = page.page({facts.run.path: facts}, {facts.run.path: judge(facts)})
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!#)[^)\"']+", html.replace("url(#${run.id}-cut)", "")) == []
    assert "<b>&.csv" not in html
    assert "&lt;b&gt;&amp;.csv" in html
    assert html.count("</script>") == 2
    assert "&#x27;&lt;i&gt;&#x27;" in html
    assert "$" not in re.sub(r"<script>.*</script>", "", html, flags=re.DOTALL)


def test_the_page_of_a_long_run_is_small_and_its_shares_are_right():
    norms = spiky(noisy(0.4, 60_000), slice(0, 60_000, 500), 30)
    facts = Facts(run_of(norms))
    drawn = page._drawing(facts)
    assert len(json.dumps(drawn)) < 200_000
    assert len(drawn["points"]) == page.POINTS
    assert max(point[3] for point in drawn["points"]) == pytest.approx(norms.max(), rel=1e-5)
    assert sum(drawn["histogram"]) == 60_000
    for limit in (0.3, 0.5, 1.0):
        assert np.mean(np.array(drawn["sorted"]) > limit) == pytest.approx(np.mean(norms > limit), abs=2e-4)


def test_a_run_without_a_norm_to_draw_has_a_page():
    for norms in ([0.0] * 30, [NAN] * 30):
        facts = Facts(run_of(norms))
        html = page.page({"log": facts}, {"log": judge(facts)})
        assert "<figure" not in html
        assert "What it says" in html
