"""``python -m gradclip report``: what the log of a run says about its threshold."""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..history import NormHistory
from ..runs import LogError, read
from .facts import Facts
from .picture import draw
from .verdict import Finding, counted, judge, number

SHARES = (0.01, 0.05, 0.1, 0.5)  # of the norms, that the thresholds proposed would clip
DEFAULT = 1.0  # what most trainers take

FINE, WRONG, UNREADABLE = 0, 1, 2  # exit codes

MARKS = {"wrong": "✗", "warning": "!", "note": "·", "good": "✓"}
COLOURS = {"wrong": "\x1b[31m", "warning": "\x1b[33m", "note": "", "good": "\x1b[32m"}
# For an output that has no such characters: a pipe on Windows, an old terminal.
ASCII = str.maketrans("✗·✓•│─┼┤└×→–▁▂▃▄▅▆▇█≥", "x.vo|-++`x>-.::||###>")


def main(arguments: Sequence[str]) -> int:
    """Report on the logs that the arguments name, and return the exit code."""
    options = parser().parse_args(arguments)
    runs: dict[str, Facts] = {}
    errors: dict[str, str] = {}
    for path in dict.fromkeys(options.paths):
        try:
            run = read(path, key=options.key, max_norm=options.max_norm)
        except (LogError, OSError) as error:
            errors[path] = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
            continue
        if not run.max_norm_source:
            run.max_norms, run.max_norm_source = [DEFAULT] * len(run), "assumed"
        runs[path] = Facts(run, options.optimizer)
    found = {path: judge(facts) for path, facts in runs.items()}
    if options.json:
        told = [as_json(facts, found[path]) for path, facts in runs.items()]
        told += [{"path": path, "error": error} for path, error in errors.items()]
        print(json.dumps({"runs": told}, indent=2, allow_nan=False))
    else:
        _print(runs, found, options.why)
    if options.html and runs:
        from .page import page

        Path(options.html).write_text(page(runs, found), encoding="utf-8")
        print(f"written: {options.html}", file=sys.stderr)
    for message in errors.values():
        print(f"error: {message}", file=sys.stderr)
    wrong = any(one.level == "wrong" for findings in found.values() for one in findings)
    return UNREADABLE if errors else WRONG if wrong else FINE


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m gradclip report",
        description="What the log of a run says about its clipping threshold, and what is wrong with the log itself.",
        epilog="Exit code: 0, nothing is wrong; 1, a log misleads or its run was lost; 2, a log cannot be read, or the "
        "command is not understood.",
    )
    command.add_argument("paths", nargs="+", metavar="PATH", help="a log: several are compared")
    command.add_argument(
        "--max-norm", type=_threshold, help="the run's threshold; without it, what the log says, or else 1.0"
    )
    command.add_argument("--key", help="the name of the norm in the log, where several could be meant")
    command.add_argument("--optimizer", default="", help="as adamw or sgd, for the advice, where the log does not say")
    command.add_argument("--html", metavar="FILE", help="write a page with a movable threshold, which needs no network")
    command.add_argument("--why", action="store_true", help="print each finding's reason and source")
    command.add_argument("--json", action="store_true", help="print the numbers and findings for a script")
    return command


def _threshold(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be ≥ 0, got {text}")
    return value


# In words -------------------------------------------------------------------------------------------------------------


def _print(runs: dict[str, Facts], found: dict[str, list[Finding]], why: bool) -> None:
    terminal = sys.stdout.isatty()
    colour = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    text = "\n\n\n".join(in_words(facts, found[path], colour, why) for path, facts in runs.items())
    if len(runs) > 1:
        text += "\n\n\n" + comparison(runs)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = text.translate(ASCII).encode("ascii", "replace").decode()
    if text:
        print(text)


def in_words(facts: Facts, findings: Sequence[Finding], colour: bool = False, why: bool = False) -> str:
    """The report on one run: what was read, the picture, the verdict, the thresholds, the spikes."""
    run = facts.run
    blocks = [_wrapped(heading(facts)), draw(facts, colour=colour)]
    blocks.append("\n".join(_finding(one, colour, why) for one in findings))
    blocks += [thresholds(facts), spikes(facts)] if trusted(findings) and facts.norms.size else []
    blocks += ["\n".join(_wrapped(note) for note in run.notes)]
    return "\n\n".join(filter(None, blocks))


def heading(facts: Facts) -> str:
    """What was read, and how much of it."""
    run = facts.run
    without = run.rows - len(run) - run.superseded - sum(run.other_runs)
    beside = f"; {counted(without, 'row')} without a norm" if without else ""
    steps = f"steps {run.steps[0]} to {run.steps[-1]}"
    return f"{run.path}: {run.format}, {run.key!r}, {counted(len(run), 'norm')}, {steps}{beside}."


def trusted(findings: Sequence[Finding]) -> bool:
    """Whether the numbers are what they seem to be."""
    return not any(one.about == "log" and one.level == "wrong" for one in findings)


def thresholds(facts: Facts) -> str:
    """The thresholds that would have clipped a given share of the norms."""
    said = ", ".join(f"{share:.0%}: {number(facts.quantile(share))}" for share in SHARES)
    few = f" With {facts.norms.size} norms, the first is a guess." if facts.norms.size < 100 else ""
    return _wrapped(f"Thresholds that would have clipped {said}.{few}")


def spikes(facts: Facts, most: int = 5) -> str:
    """The largest spikes, a line for each."""
    largest = sorted(facts.spikes, key=lambda spike: -spike.factor)[:most]
    if not largest:
        return ""
    after = {True: "the loss was higher after it", False: "the loss was not higher after it", None: ""}
    lines = [
        f"  step {spike.step}: norm {number(spike.norm)}, {number(spike.factor)}× the median before"
        + (f"; {after[spike.loss_rose]}" if spike.loss_rose is not None else "")
        for spike in largest
    ]
    return "\n".join([f"The largest {'spike' if len(largest) == 1 else 'spikes'}:", *lines])


def comparison(runs: dict[str, Facts]) -> str:
    """The runs side by side, and which of them is the beginning of another."""
    names = shortened(list(runs))
    lines = [NormHistory.compare({names[path]: facts.run for path, facts in runs.items()})]
    for one, facts in runs.items():
        for other, longer in runs.items():
            n = len(facts.run)
            if one != other and n < len(longer.run) and np.array_equal(facts.all, longer.all[:n], equal_nan=True):
                lines.append(_wrapped(f"{names[one]} is the beginning of {names[other]}: they are one run."))
    return "\n".join(lines)


def shortened(paths: list[str], width: int = 26) -> dict[str, str]:
    """The ends of the paths, long enough to differ."""
    for parts in range(1, max(len(Path(path).parts) for path in paths) + 1):
        names = ["/".join(Path(path).parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return {
        path: name if len(name) <= width else "…" + name[1 - width :] for path, name in zip(paths, names, strict=True)
    }


def _finding(one: Finding, colour: bool, why: bool) -> str:
    start, end = (COLOURS[one.level], "\x1b[0m") if colour and COLOURS[one.level] else ("", "")
    said = _wrapped(f"{MARKS[one.level]} {one.says}", "  ").replace(
        MARKS[one.level], f"{start}{MARKS[one.level]}{end}", 1
    )
    lines = [said]
    if one.advice:
        lines.append(_wrapped(f"  → {one.advice}", "    "))
    if why:
        lines.append(_wrapped(f"  Why: {one.reason} Evidence: {one.evidence} ({one.source}).", "    "))
    elif one.evidence == "thin":
        lines.append(_wrapped(f"  Thin evidence: {one.reason}", "    "))
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# For scripts ----------------------------------------------------------------------------------------------------------


def as_json(facts: Facts, findings: Sequence[Finding]) -> dict[str, Any]:
    """What was found, under keys that stay; what is no number is None."""
    run, rose = facts.run, facts.rose
    moved = facts.drift
    return {
        "path": run.path,
        "format": run.format,
        "key": run.key,
        "norms": facts.count,
        "norms_finite": facts.norms.size,
        "rows": run.rows,
        "bad_rows": run.bad_rows,
        "first_bad": run.first_bad or None,
        "superseded": run.superseded,
        "other_runs": run.other_runs,
        "skipped": run.skipped,
        "first_step": run.steps[0],
        "last_step": run.steps[-1],
        "interval": facts.interval,
        "averaged": bool(run.averaged),
        "optimizer": facts.optimizer or None,
        "trusted": trusted(findings),
        "max_norm": _finite(facts.max_norm),
        "max_norm_source": run.max_norm_source,
        "clip_fraction": facts.clip_fraction,
        "clip_factor": _finite(facts.factor),
        "quantiles": {str(q): _finite(facts.quantile(1 - q)) for q in (0.1, 0.5, 0.9, 0.99, 1)},
        "thresholds": {str(share): _finite(facts.quantile(share)) for share in SHARES},
        "drift": [*map(_finite, moved)] if moved else None,
        "loss_drift": _finite(facts.loss_drift),
        "spikes": [
            {"step": one.step, "norm": one.norm, "factor": one.factor, "loss_rose": one.loss_rose}
            for one in facts.spikes
        ],
        "spikes_with_loss_rise": rose[0] if rose[1] else None,
        "spikes_with_loss": rose[1],
        "base_rate": _finite(facts.base_rate),
        "findings": [one._asdict() for one in findings],
        "notes": run.notes,
    }


def _finite(x: float) -> float | None:
    return float(x) if isfinite(x) else None
