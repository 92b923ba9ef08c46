"""Part II's table of edge cases: what it says of a framework is what the framework does."""

import math

import numpy as np
import pytest
import torch

from book.frameworks import edge_cases
from book.frameworks.edge_cases import Answers, Case, Rows

INF, NAN = math.inf, math.nan


def f32(*values):
    return np.array(values, np.float32)


TWICE = f32(3, 4)
HALF = np.full(4, 40000, np.float16)
# PyTorch has a norm of sparse gradients on the CPU from version 2.14 on, and sums repeated rows first.
ROW_IN_PYTORCH, MARK_OF_IT = ("1 0", "=") if torch.__version__ >= (2, 14) else ("error: NotImplementedError", "x")
# The formula in NumPy, PyTorch, TensorFlow, Keras, optax, gradclip on its four frameworks.
CASES = {
    "ordinary": (Case([f32(3, 4)], 1), *["0.6 0.8"] * 9),
    "below": (Case([f32(3, 4)], 10), *["3 4"] * 9),
    "equal": (Case([f32(2**-20)], 2**-20), "9.5e-7", "4.7e-7", *["9.5e-7"] * 7),
    "zero norm": (Case([f32(0, 0)], 1), *["all 0"] * 9),
    "zero norm at zero": (Case([f32(0, 0)], 0), "all NaN", "all 0", "all NaN", *["all 0"], "all NaN", *["all 0"] * 4),
    "infinite": (Case([f32(INF, 1)], 1), "NaN 0", "NaN 0", "all NaN", "all NaN", "NaN 0", *["all NaN"] * 4),
    "NaN": (Case([f32(NAN, 1)], 1), *["all NaN"] * 9),
    "huge": (Case([f32(1e20, 2e20)], 1), "all 0", "all 0", "all NaN", "all NaN", "all 0", *["0.45 0.89"] * 4),
    "half": (Case([HALF], 1), "all 0", "all 0", "all NaN", "all NaN", "all 0", *["all 0.5"] * 4),
    "c = 0": (Case([f32(3, 4)], 0), "all 0", "all 0", "all 0", "3 4", "all 0", *["all 0"] * 4),
    "c = -1": (Case([f32(3, 4)], -1), *["-0.6 -0.8"] * 2, "3 4", "3 4", "-0.6 -0.8", *["error: ValueError"] * 4),
    "c = inf": (Case([f32(3, 4)], INF), "3 4", "3 4", "all NaN", "all NaN", *["3 4"] * 5),
    "c = NaN": (Case([f32(3, 4)], NAN), *["all NaN"] * 3, "3 4", "all NaN", *["error: ValueError"] * 4),
    "nothing": (Case([], 1), *["nothing"] * 3, "error: ValueError", *["nothing"] * 5),
    "None": (Case([f32(3, 4), None], 1), "error: TypeError", *["0.6 0.8"] * 8),
    "rows": (
        Case([Rows([0, 0], f32(3, 4))], 1),
        *["–", ROW_IN_PYTORCH, "1.4 0", "1.4 0", "–"],
        *["–", "1 0", "1 0", "–"],
    ),
    "twice": (
        Case([TWICE, TWICE], 1),
        *["0.42 0.57", "0.06 0.08", "0.42 0.57", "0.85 1.1", "0.42 0.57"],
        *["0.6 0.8", "0.6 0.8", "0.42 0.57", "0.42 0.57"],
    ),
    "mixed": (
        Case([f32(3), np.float16([4])], 1),
        *["0.6 0.8", "0.6 0.8", "error: InvalidArgumentError", "error: InvalidArgumentError", "0.6 0.8"],
        *["0.6 0.8"] * 4,
    ),
}
SYSTEMS = edge_cases.FRAMEWORKS | {f"gradclip, {name}": clip for name, clip in edge_cases.GRADCLIP.items()}


@pytest.mark.parametrize("name", CASES)
def test_answers(name):
    case, *want = CASES[name]
    before = [None if g is None else np.array(g.values if isinstance(g, Rows) else g) for g in case.grads]
    got = {system: edge_cases.answer(clip, case) for system, clip in SYSTEMS.items()}
    assert got == dict(zip(SYSTEMS, want, strict=True))
    for g, was in zip(case.grads, before, strict=True):  # the next system gets what this one got
        if was is not None:
            np.testing.assert_array_equal(g.values if isinstance(g, Rows) else g, was)


def test_exact_answers():
    assert edge_cases.exact(CASES["c = -1"][0]) is edge_cases.exact(CASES["c = NaN"][0]) is None
    assert edge_cases.exact(CASES["infinite"][0]) is edge_cases.exact(CASES["NaN"][0]) is None
    for name, want in {"huge": [0.4472136, 0.8944272], "rows": [1, 0], "twice": [0.6, 0.8], "equal": [2**-20]}.items():
        (got,) = edge_cases.exact(CASES[name][0])
        np.testing.assert_allclose(got, want, rtol=1e-7)
    assert edge_cases.exact(CASES["nothing"][0]) == []


def test_a_row():
    row = edge_cases.ask(CASES["huge"][0])
    assert row.exact == row.by["gradclip"] == "0.45 0.89"
    assert [row.mark(system) for system in row.by] == ["x"] * 5 + ["="]
    assert not row.agree
    row = edge_cases.ask(CASES["c = -1"][0])
    assert [row.mark(system) for system in row.by] == ["a", "a", "b", "b", "a", "c"]
    row = edge_cases.ask(CASES["rows"][0])
    assert [row.mark(system) for system in row.by] == ["", MARK_OF_IT, "x", "x", "", "="]
    assert edge_cases.ask(CASES["twice"][0]).by["gradclip"] == "0.6 0.8 or 0.42 0.57"
    assert edge_cases.ask(CASES["NaN"][0]).agree


def test_tables():
    table = {
        "two & three": Answers("1 2", {"one": "1 2", "other": "error: TypeError", "third": "–"}),
        "no answer": Answers(None, {"one": "3", "other": "all NaN", "third": "3"}),
        "all agree": Answers("0", {"one": "0", "other": "0", "third": "–"}),
    }
    text = "            one   other     third\ntwo & three = 1 2 x error     –\n"
    assert edge_cases.as_text(table) == text + "no answer   a 3   b all NaN a 3\nall agree   = 0   = 0         –"
    page = edge_cases.as_html(table, "A caption")
    assert "two &amp; three" in page
    assert page.count("✗") == 1
    assert page.count(edge_cases.COLOURS["="]) == 1  # where all agree there is no colour
    assert page.count("<td") == 9


def test_numbers():
    shown = [edge_cases.number(x) for x in (0.0, -0.0, -0.6, 9.54e-7, 1e20, INF, NAN, 1 / 3)]
    assert shown == ["0", "0", "-0.6", "9.5e-7", "1e+20", "inf", "NaN", "0.33"]
