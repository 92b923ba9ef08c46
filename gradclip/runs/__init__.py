"""Logs of runs, of whatever program wrote them, as a `NormHistory`."""

import os
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..history import NormHistory
from .columns import Columns, Series
from .formats import ADVICE, BROKEN, Beside, LogError, recognised

__all__ = ["LogError", "Run", "read"]


class Run(NormHistory):
    """What a log says: a `NormHistory`, and how it was read.

    Attributes
    ----------
    path, format, key : str
        The file, its format, and the name that the norm has in it.
    max_norm_source : str
        Where the thresholds are from: ``"argument"``, ``"log"``, or ``""`` where none is known; they are infinite then.
    optimizer : str
        As the log names it, in lower case; ``""`` where it does not.
    loss_scales : list of float
        The loss scale of each step; empty where the log has none.
    averaged : str
        Why each norm is the mean of several steps; ``""`` where it is that of one.
    rows, bad_rows, first_bad : int
        How many norms and rows without a norm were read, how many rows could not be, and the first of these (its line,
        or its number in an array; 0 where there is none).
    superseded : int
        The norms left out since a resumed run logged their steps again.
    other_runs : list of int
        How many norms the other runs in this file have, which were left out.
    skipped : int
        The steps that the log says were skipped, since gradients overflowed.
    notes : list of str
        What had to be assumed, in sentences.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path, self.format, self.key, self.max_norm_source, self.optimizer, self.averaged = "", "", "", "", "", ""
        self.rows = self.bad_rows = self.first_bad = self.superseded = self.skipped = 0
        self.loss_scales: list[float] = []
        self.other_runs: list[int] = []
        self.notes: list[str] = []


def read(path: "str | os.PathLike[str]", *, key: str | None = None, max_norm: Any = None) -> Run:
    r"""Read the norms of a run, with steps, losses and learning rates where its log has them.

    The format is recognised by the content: a Trainer's ``trainer_state.json`` and the dicts it prints, JSON lines,
    CSV, TensorBoard's event files (with the package tensorboard), RLlib's ``result.json`` and ``progress.csv``, and
    text as Megatron-LM, torchtitan, nanoGPT, fairseq, mmengine and LeRobot print it. Files of any size are read as a
    stream; what stays in memory is the numbers, about 200 bytes a step.

    Parameters
    ----------
    path : str or path-like
        The log.
    key : str, optional
        The name of the norm in it, where several could be meant, or it has one of its own.
    max_norm : float, optional
        The threshold of the run, where the log does not say.

    Returns
    -------
    Run
        A `NormHistory` that also says how it was read. A norm that a resumed run logged again is in it once, as the
        later piece has it; of several runs in one file, the longest is.

    Raises
    ------
    LogError
        There is no norm in the file, only one that no threshold can be judged by, or more than one that could be meant.
    OSError
        The file cannot be opened.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> log = pathlib.Path(tempfile.mkdtemp(), "log.txt")
    >>> _ = log.write_text("step 1 | loss 2.5 | norm 0.5\nstep 2 | loss 2.4 | norm 3.0\n")
    >>> run = read(log, max_norm=1.0)
    >>> run.norms, run.losses, run.clip_fraction
    ([0.5, 3.0], [2.5, 2.4], 0.5)
    """
    path = Path(path)
    if max_norm is not None:
        max_norm = checks.threshold(max_norm)
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        raise LogError(f"{path} is a folder; name one of its files: {', '.join(inside[:8]) or 'there is none'}")
    run, columns, beside = Run(), Columns(key), Beside()
    kind = recognised(path, key)
    run.path, run.format = str(path), kind.name
    for where, row in kind.read(path, key, beside):
        if row is BROKEN or not columns.add(row):
            run.bad_rows += 1
            run.first_bad = run.first_bad or where
    run.key, series = _the_norm(columns, run)
    run.averaged = kind.averaged or (series.averaged and f"{run.key!r} {series.averaged}")
    run.optimizer, run.skipped = beside.optimizer or "", beside.skipped + columns.skipped
    run.rows = len(series) + columns.without
    columns.series.clear()  # of a long log, the other columns take memory
    _fill(run, series, beside, max_norm)
    return run


def _the_norm(columns: Columns, run: Run) -> tuple[str, Series]:
    """The column that is the norm."""
    found = columns.series
    if not found:
        if run.bad_rows and not columns.without:
            raise LogError(f"no row of {run.path} ({run.format}) can be read; the first that cannot is {run.first_bad}")
        names = list(columns.names)
        listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        missing = f"has no {columns.key!r}" if columns.key else "has no norm of the gradient"
        raise LogError(f"{run.path} ({run.format}) {missing} in its columns: {listed or 'none'}. {ADVICE}")
    usable = {name: series for name, series in found.items() if columns.key or not series.averaged}
    if not usable:
        name, series = next(iter(found.items()))
        raise LogError(f"in {run.path} ({run.format}), the only norm {name!r} {series.averaged}. {ADVICE}")
    best = min(series.rank for series in usable.values())
    names = [name for name, series in usable.items() if series.rank == best]
    if len(names) > 1:
        counts = ", ".join(f"{name!r} ({len(usable[name])} numbers)" for name in names)
        raise LogError(f"several columns of {run.path} could be the norm: {counts}. Name one with key= (--key)")
    if len(usable[names[0]]) == 1 and any(name.startswith("_wandb") for name in columns.names):
        raise LogError(f"{run.path} is the summary of a run, with its last norm only: export the run's history instead")
    return names[0], usable[names[0]]


def _fill(run: Run, series: Series, beside: Beside, max_norm: float | None) -> None:
    """Put the numbers into the record, each step once and of one run only."""
    count = len(series)
    steps, epochs, logged = (_numbers(series, role) for role in ("step", "epoch", "max_norm"))
    kept = np.ones(count, bool)
    order = steps
    if np.isnan(steps).any():
        order, steps = epochs, np.arange(count, dtype=float)
        run.notes.append("The log does not number its steps: they are counted from 0.")
    if not np.isnan(order).any():
        back = np.flatnonzero(order[1:] < order[:-1]) + 1
        if len(back) and not np.isnan(epochs).any() and (epochs[back] > epochs[back - 1]).all():
            steps = np.arange(count, dtype=float)
            run.notes.append("The log numbers the steps of each epoch anew: they are counted from 0.")
        elif len(back):
            kept = _longest_run(run, order, back)
            kept &= _not_again(order, kept)
            run.superseded = count - sum(run.other_runs) - int(kept.sum())
    if order is steps and count > 1 and np.mean(steps[1:] == steps[:-1]) > 0.1:
        run.notes.append("Some steps have several norms: of several processes, or of steps that the log rounds.")
    limit = max_norm if max_norm is not None else beside.max_norm
    run.max_norm_source = "argument" if max_norm is not None else "" if limit is None else "log"
    if limit == 0 and max_norm is None:  # trainers take 0 for no threshold
        limit = inf
    run.max_norms = [inf if limit is None else limit] * int(kept.sum())
    if max_norm is None and (logged >= 0).any():
        run.max_norm_source, run.max_norms = "log", np.where(logged >= 0, logged, inf)[kept].tolist()
    run.steps = steps[kept].astype(int).tolist()
    run.norms = _numbers(series, "norm")[kept].tolist()
    run.losses = _numbers(series, "loss")[kept].tolist()
    run.learning_rates = _numbers(series, "learning_rate")[kept].tolist()
    run.loss_scales = _numbers(series, "loss_scale")[kept].tolist() if "loss_scale" in series.beside else []


def _numbers(series: Series, role: str) -> Any:
    values = series.norms if role == "norm" else series.beside.get(role)
    return np.full(len(series), nan) if values is None else np.frombuffer(values)


def _longest_run(run: Run, order: Any, back: Any) -> Any:
    """Which norms are of the longest run: where the steps start over, another run begins."""
    starts = [0, *(int(i) for i in back if order[i] <= order[0])]
    lengths = np.diff([*starts, len(order)])
    longest = len(lengths) - 1 - int(np.argmax(lengths[::-1]))  # of equally long ones, the last
    run.other_runs = [int(length) for i, length in enumerate(lengths) if i != longest]
    places = np.arange(len(order))
    return (places >= starts[longest]) & (places < starts[longest] + lengths[longest])


def _not_again(order: Any, kept: Any) -> Any:
    """Which norms no later piece of the run logs again; equal steps that follow each other are of one piece."""
    later = np.where(kept, order, inf)
    lowest = np.append(np.minimum.accumulate(later[::-1])[::-1], inf)  # of this one and all after it
    ends = np.append(np.flatnonzero(order[1:] != order[:-1]), len(order) - 1)
    return order < lowest[np.repeat(ends, np.diff(ends, prepend=-1)) + 1]
