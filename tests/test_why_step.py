"""The movable figure of Why clipping works counts the steps that the page's Python counts."""

import json
import shutil
import subprocess

import nbformat
import pytest

from tools.notebooks import BOOK

SCRIPT = BOOK / "_static" / "movable" / "why-step.js"


def rows():
    """(η, c, steps, clipped steps) of the page's table."""
    cells = nbformat.read(BOOK / "theory" / "why-clipping-works.ipynb", as_version=4).cells
    (cell,) = (cell for cell in cells if "pairs = [" in cell.source)
    lines = cell.outputs[0].data["text/plain"].splitlines()[1:]
    table = [[float(word) for word in line.split()] for line in lines]
    return [(eta, c, int(steps), int(clipped)) for eta, c, _, steps, clipped in table]


def node(expression):
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node.js to run the figure's script without a browser")
    script = f"const f = require({json.dumps(str(SCRIPT))}); console.log(JSON.stringify({expression}))"
    return json.loads(subprocess.run([program, "-e", script], capture_output=True, text=True, check=True).stdout)


def test_the_figure_counts_what_the_table_says():
    counted = rows()
    assert len(counted) == 9
    pairs = json.dumps([row[:2] for row in counted])
    said = node(f"{pairs}.map(([eta, c]) => [f.outcome(f.descend(eta, c), eta, c), f.RATES.includes(eta)])")
    for (_, _, steps, clipped), (words, can_be_chosen) in zip(counted, said, strict=True):
        assert f" {steps} steps to slope 0.001, {clipped} of them clipped." in words
        assert can_be_chosen


def test_it_says_when_a_run_is_lost_or_does_not_arrive():
    lost, jumping = node("[[0.5, Infinity], [2.1, 2]].map(([eta, c]) => f.outcome(f.descend(eta, c), eta, c))")
    assert "thrown out" in lost
    assert "Not at the minimum after 2000 steps" in jumping
