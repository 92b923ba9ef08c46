"""The report of ``python -m gradclip``."""

import importlib
import re
import subprocess
import sys

import numpy as np
import pytest

import gradclip
from gradclip import __main__ as report


def test_the_report_of_a_sound_installation():
    run = subprocess.run([sys.executable, "-m", "gradclip"], capture_output=True, text=True)
    first, *lines = run.stdout.splitlines()
    assert first.startswith(f"gradclip {gradclip.__version__}, Python 3.")
    assert [re.sub(r"  +", " ", line).split(";")[0] for line in lines] == [
        f"{name} {importlib.import_module(name).__version__} all {len(report.CASES)} cases right"
        for name in ("numpy", "torch", "tensorflow", "jax")
    ]
    assert run.returncode == 0


def test_every_case_can_fail():
    """Each case is noticed where clipping does not do what it should, here nothing or all at once."""
    nothing = {name: (raw, lambda g: g, want) for name, (raw, _, want) in report.CASES.items()}
    passed_on = {"within the threshold, unchanged", "threshold inf"}
    assert wrong_cases(nothing) == report.CASES.keys() - passed_on
    halved = {name: (raw, lambda g: g / 2, want) for name, (raw, _, want) in report.CASES.items()}
    assert wrong_cases(halved) == report.CASES.keys()
    assert report.self_test(np.asarray) == []


def wrong_cases(cases):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "CASES", cases)
        return {line.partition(":")[0] for line in report.self_test(np.asarray)}


def test_what_is_missing_or_broken_is_said(monkeypatch, capsys):
    def import_module(name):
        if name == "torch":
            raise ModuleNotFoundError(name)
        if name == "jax":
            raise RuntimeError("built for another machine")
        return importlib.__import__(name)

    monkeypatch.setattr(report.importlib, "import_module", import_module)
    monkeypatch.setattr(report, "FRAMEWORKS", {**report.FRAMEWORKS, "numpy": lambda numpy: lambda a: a * 2})
    assert report.main()
    said = capsys.readouterr().out
    assert "torch       not installed\n" in said
    assert "jax         cannot be imported: RuntimeError: built for another machine\n" in said
    assert "cases FAILED\n            " in said
    assert "within the threshold, unchanged: [3, 4] gave [3.0, 4.0], not [3, 4]" not in said
    assert "the norm before clipping: [3, 4] gave 10.0, not 5" in said
