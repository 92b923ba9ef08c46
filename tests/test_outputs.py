"""The comparison of notebooks' outputs by number: what passes, what fails, and what a reader of the failure learns."""

import re
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tools.notebooks import ROOT
from tools.outputs import check, settle

WHY = {"reason": "for the test"}
TABLE = "rule      steps    loss\nclipped     100   0.500\nnot        8000   2.000\n"


def stream(text):
    return [new_output("stream", name="stdout", text=text)]


def html(*rows):
    cells = "".join(f"<tr>{''.join(f'<td style=width:9px>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return [new_output("execute_result", data={"text/html": f"<table>{cells}</table>", "text/plain": "a table, 1"})]


def found(stored, new, **tolerance):
    stored, new = (stream(text) if isinstance(text, str) else text for text in (stored, new))
    settled, differing = settle(stored, new, WHY | tolerance)
    assert (settled == stored) == (not differing)
    return differing


@pytest.mark.parametrize(
    ("stored", "new", "tolerance"),
    [
        ("loss 2.0\n", "loss 2.2\n", {"absolute": 0.2}),  # the floats are further apart than 0.2
        ("loss 2.0\n", "loss 1.8\n", {"absolute": 0.2}),
        ("loss -2.0\n", "loss -2.1\n", {"relative": 0.05}),
        ("loss 1e-12\n", "loss 9.6e-13\n", {"relative": 0.05}),
        ("after 60 steps\n", "after 120 steps\n", {"factor": 2}),
        ("after 120 steps\n", "after 60 steps\n", {"factor": 2}),
        ("1,200 steps\n", "1,210 steps\n", {"absolute": 10}),
        ("[ 9.9  0.5]\n", "[10.1  0.5]\n", {"absolute": 0.2}),
        ("0.1, −3.0 and 7%\n", "-0.1, −3.1 and 7%\n", {"absolute": 0.2}),
    ],
)
def test_within_the_tolerance_passes(stored, new, tolerance):
    assert found(stored, new, **tolerance) == []


@pytest.mark.parametrize(
    ("stored", "new", "tolerance"),
    [
        ("loss 2.0\n", "loss 2.3\n", {"absolute": 0.2}),
        ("loss 2.0\n", "loss 1.7\n", {"absolute": 0.2}),
        ("loss 100.0\n", "loss 105.1\n", {"relative": 0.05}),
        ("loss 2.0\n", "loss -2.0\n", {"relative": 0.99}),
        ("after 60 steps\n", "after 121 steps\n", {"factor": 2}),
        ("after 60 steps\n", "after 29 steps\n", {"factor": 2}),
        ("after 0 steps\n", "after 1 steps\n", {"factor": 2}),
        ("after 2 steps\n", "after -2 steps\n", {"factor": 2}),
        ("1,200 steps\n", "1,211 steps\n", {"absolute": 10}),
    ],
)
def test_beyond_the_tolerance_fails(stored, new, tolerance):
    assert len(found(stored, new, **tolerance)) == 1


@pytest.mark.parametrize("stored", ["nan", "inf", "-inf", "1e300"])
@pytest.mark.parametrize("new", ["nan", "inf", "-inf", "1e300"])
def test_nan_and_infinity_are_exact(stored, new):
    assert bool(found(f"loss {stored}\n", f"loss {new}\n", absolute=1e308)) == (stored != new)


@pytest.mark.parametrize(
    "new",
    [
        "loss 2.0 of 5 tries\n",
        "loss 2.0 of 5 runs: 1\n",
        "loss 2.0 of runs\n",
        "loss 2.0 of 5 runs\n\n",
        "loss  2.0 of 5runs\n",
        "loss lost of 5 runs\n",
        "loss 2.0 of 5 runs!\n",
        "loss 2.0of 5 ru ns\n",
    ],
)
def test_other_words_or_another_count_of_numbers_fail(new):
    assert found("loss 2.0 of 5 runs\n", new, factor=2)


@pytest.mark.parametrize("digits", ["float32", "x_10", "3x", "torch 2.13.0", "W3", "10²"])
def test_digits_in_a_word_are_text(digits):
    other = digits.translate(str.maketrans("123", "456"))
    assert found(f"{digits} gave 1.0\n", f"{other} gave 1.0\n", factor=9)
    assert not found(f"{digits} gave 1.0\n", f"{digits} gave 2.0\n", factor=9)


def test_only_the_spaces_beside_a_number_are_free():
    assert not found("a  b   9\n", "a b  10\n", absolute=1)
    assert found("ab 9\n", "a b 9\n", absolute=1)


@pytest.mark.parametrize("output", [TABLE, f"before 1\n{TABLE}\n{TABLE}"])
def test_a_column_has_a_tolerance_of_its_own(output):
    columns = {"steps": {"factor": 2}}
    assert not found(output, output.replace(" 8000", "15000"), columns=columns)
    assert not found(output, output.replace("100", " 99"), columns=columns)
    assert found(output, output.replace("8000", "3999"), columns=columns)[0].startswith("stdout, line ")
    assert found(output, output.replace("2.000", "2.001"), columns=columns)
    # A tolerance beside the columns is for all other numbers.
    assert not found(output, output.replace("2.000", "2.001"), columns=columns, relative=0.01)
    assert found(output, output.replace("2.000", "2.100"), columns=columns, relative=0.01)
    assert found(output, output.replace("steps", "tries"), columns=columns)


def test_two_columns():
    columns = {"steps": {"factor": 2}, "loss": {"absolute": 0.1}}
    assert not found(TABLE, TABLE.replace("8000   2.000", "7000   2.100"), columns=columns)
    assert len(found(TABLE, TABLE.replace("8000   2.000", "3000   2.200"), columns=columns)) == 2


def test_html_tables():
    stored = html(["rule", "steps", "loss"], ["clipped", 100, "<b>0.5</b>"])
    columns = {"steps": {"factor": 2}, "loss": {"absolute": 0.1}}
    assert not found(stored, html(["rule", "steps", "loss"], ["clipped", 200, "<b>0.6</b>"]), columns=columns)
    assert found(stored, html(["rule", "steps", "loss"], ["clipped", 201, "<b>0.6</b>"]), columns=columns)
    assert found(stored, html(["rule", "steps", "loss"], ["clipped", 100, "<b>0.7</b>"]), columns=columns)
    assert found(stored, html(["rule", "steps", "loss"], ["other", 100, "<b>0.5</b>"]), columns=columns)
    wider = html(["rule", "steps", "loss"], ["clipped", 100, "<b>0.5</b>"])
    wider[0].data["text/html"] = wider[0].data["text/html"].replace("9px", "8px")
    assert found(stored, wider, absolute=9)
    plain = html(["rule", "steps", "loss"], ["clipped", 100, "<b>0.5</b>"])
    plain[0].data["text/plain"] = "a table, 2"
    assert found(stored, plain, columns=columns)
    assert not found(stored, plain, columns=columns, absolute=1)


def test_a_failure_shows_both_numbers_the_column_and_the_tolerance():
    (line,) = found(TABLE, TABLE.replace("8000", "3000"), columns={"steps": {"factor": 2}})
    assert line == "stdout, line 3, column 'steps': 3000, stored is 8000, tolerance: factor 2"
    (line,) = found("loss 2.0\n", "loss 2.3\n", absolute=0.2)
    assert line == "stdout, line 1: 2.3, stored is 2.0, tolerance: absolute 0.2"
    (line,) = found("loss 2.0\n", "cost 2.0\n", absolute=0.2)
    assert line == "stdout, line 1: the text is not the stored one:\n  cost 2.0\n  loss 2.0"


def test_what_stderr_says_is_not_paired_with_the_output():
    noise = [new_output("stream", name="stderr", text="1 warning\n")]
    stored = stream("loss 2.0\n")
    assert settle(stored, noise + stream("loss 2.1\n"), WHY | {"absolute": 0.2}) == (noise + stored, [])


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        (0.1, "a tolerance is a dict, got 0.1"),
        ({}, "needs a reason"),
        ({"relative": 0.1}, "needs a reason"),
        ({"relative": 0.1, "reason": " "}, "needs a reason"),
        (WHY, "takes one of absolute, relative and factor, got {}"),
        (WHY | {"relativ": 0.1}, "takes one of absolute, relative and factor, got {'relativ': 0.1}"),
        (WHY | {"relative": 0.1, "absolute": 1}, "takes one of"),
        (WHY | {"relative": 1}, "relative is a number between 0 and 1, got 1"),
        (WHY | {"absolute": 0}, "absolute is a number between 0 and inf, got 0"),
        (WHY | {"absolute": float("nan")}, "got nan"),
        (WHY | {"absolute": float("inf")}, "got inf"),
        (WHY | {"absolute": True}, "got True"),
        (WHY | {"absolute": "0.1"}, "got '0.1'"),
        (WHY | {"factor": 0.5}, "factor is a number between 1 and inf, got 0.5"),
        (WHY | {"columns": ["steps"]}, r"columns is a dict of a tolerance for each name, got \['steps'\]"),
        (WHY | {"columns": {}}, "columns is a dict"),
        (WHY | {"columns": {"steps": 2}}, "tolerance of column 'steps': takes one of"),
        (WHY | {"columns": {"steps": {"factor": 2, "reason": "x"}}}, "tolerance of column 'steps': takes one of"),
        (WHY | {"columns": {"steps": {"factor": 1}}}, "tolerance of column 'steps': factor is a number between 1"),
    ],
)
def test_a_wrong_tolerance_is_an_error(tolerance, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        check(tolerance)
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        settle(stream(TABLE), stream(TABLE), tolerance)


def test_a_tolerance_for_nothing_is_an_error():
    with pytest.raises(ValueError, match="no number in column gain"):
        found(TABLE, TABLE, columns={"gain": {"factor": 2}, "steps": {"factor": 2}})
    with pytest.raises(ValueError, match="no number in column rule"):
        found(TABLE, TABLE, columns={"rule": {"factor": 2}})
    with pytest.raises(ValueError, match="the stored output has no number"):
        found("all x2\n", "all x2\n", factor=2)
    with pytest.raises(ValueError, match="the stored output has no number"):
        found([], [], factor=2)


def test_nbval_compares_with_the_tolerance(tmp_path):
    stored = [
        ("print('loss', 2.1)", "loss 2.0\n", {"absolute": 0.2}),  # passes
        ("print('loss', 2.3)", "loss 2.0\n", {"absolute": 0.2}),  # fails
        ("print('cost', 2.0)", "loss 2.0\n", {"absolute": 0.2}),  # fails
        ("print('loss', 2.0)", "loss 2.0\n", {"absolut": 0.2}),  # fails
        ("print('loss', 2.1)", "loss 2.0\n", None),  # fails
    ]
    cells = []
    for count, (source, text, tolerance) in enumerate(stored, 1):
        metadata = {"tolerance": tolerance | WHY} if tolerance else {}
        cells.append(new_code_cell(source, execution_count=count, outputs=stream(text), metadata=metadata))
    cells.append(new_code_cell("1.01", execution_count=6, metadata={"tolerance": WHY | {"relative": 0.1}}))
    cells[-1].outputs = [new_output("execute_result", data={"text/plain": "1.0"}, execution_count=6)]  # passes
    nbformat.write(new_notebook(cells=cells), tmp_path / "tiny.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "-v"]
    command += ["--rootdir", str(ROOT), "--confcutdir", str(tmp_path), "-p", "conftest", "--color=no"]
    command += ["--nbval", "--nbval-current-env", str(tmp_path / "tiny.ipynb")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    outcomes = re.findall(r"::Cell \d+ ([A-Z]+)", run.stdout)
    assert outcomes[:6] == ["PASSED", "FAILED", "FAILED", "FAILED", "FAILED", "PASSED"], run.stdout + run.stderr
    assert "stdout, line 1: 2.3, stored is 2.0, tolerance: absolute 0.2" in run.stdout
    assert "takes one of absolute, relative and factor, got {'absolut': 0.2}" in run.stdout
