"""The movable figure of the cliff takes the same steps as the page's Python."""

import json
import re
import runpy
import shutil
import subprocess

import nbformat
import numpy as np
import pytest

from tools.notebooks import BOOK, all_notebooks

SCRIPT = BOOK / "_static" / "movable" / "cliff-thresholds.js"
CELLS = nbformat.read(BOOK / "theory" / "the-cliff.ipynb", as_version=4).cells
# A row of a cell's table, where the start may come first, and what the figure says of the same run.
REPORTED = re.compile(r"^(?:\(.+?\) +)?([\d.]+|inf) +(never|\d+) +([\d.]+)", re.MULTILINE)
SAID = re.compile(r"Longest step (\S+)\. (?:In the valley from step (\d+)|Not in the valley)")


def reported(cell_that_has):
    (cell,) = (c for c in CELLS if cell_that_has in c.source)
    table = cell.outputs[0].data["text/plain"]
    return [(c, longest, None if step == "never" else step) for c, step, longest in REPORTED.findall(table)]


def said(start, thresholds):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js to run the figure's script without a browser")
    run = (
        f"const cliff = require({json.dumps(str(SCRIPT))});"
        f"for (const c of {json.dumps([None if c == 'inf' else float(c) for c in thresholds])})"
        f"  console.log(cliff.outcome(cliff.descend(cliff.STARTS[{start}], c ?? Infinity), c ?? Infinity));"
    )
    lines = subprocess.run([node, "-e", run], capture_output=True, text=True, check=True).stdout.splitlines()
    return [(c, *SAID.search(line).groups()) for c, line in zip(thresholds, lines, strict=True)]


def test_the_figure_ends_where_the_cells_do():
    from_python = reported("thresholds = [")
    assert len(from_python) == 6
    assert said(0, [c for c, _, _ in from_python]) == from_python


def test_the_other_starts_end_where_the_cells_do():
    from_python = reported("others = [")
    assert [c for c, _, _ in from_python] == ["1", "inf", "1", "inf"]
    for start, its in [(1, from_python[:2]), (2, from_python[2:])]:
        assert said(start, [c for c, _, _ in its]) == its


def test_one_network_in_floats_is_one_of_many_in_arrays():
    cliff = runpy.run_path(str(BOOK / "theory" / "cliff.py"))
    w, b = np.array([4.5, 6.0, 51.6]), np.array([-2.0, -2.9, 72.7])
    in_arrays = np.array(cliff["error_and_gradient"](w, b))
    alone = [cliff["error_and_gradient"](*theta) for theta in zip(w.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(in_arrays.T, alone, rtol=1e-9)
    assert cliff["sigmoid"](-1e4) == cliff["sigmoid"](np.array(-1e4)) == 0


def test_the_movable_figures_take_nothing_from_elsewhere():
    for script in (BOOK / "_static").rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert set(re.findall(r"\w+://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, never fetched
        assert not re.search(r"\b(src=|import\(|fetch\(|XMLHttpRequest)", text)


def test_each_movable_figure_has_a_picture_of_its_name():
    names = {
        cell.metadata.get("mystnb", {}).get("figure", {}).get("name", "")
        for path in all_notebooks()
        for cell in nbformat.read(path, as_version=4).cells
    }
    for script in (BOOK / "_static" / "movable").glob("*.js"):
        assert any(f"{name}-".startswith(f"{script.stem}-") for name in names), script
