"""A record of norms and thresholds: how often a run was clipped, and what to do about it."""

import csv
import os
from collections.abc import Mapping
from math import inf, isfinite, isnan, nan
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito's, which readers with any colour vision can tell apart
BLUE, VERMILION = "#0072B2", "#D55E00"

# What a state and a CSV file hold of each step, and as which attribute.
COLUMNS = {
    "step": "steps",
    "norm": "norms",
    "max_norm": "max_norms",
    "loss": "losses",
    "learning_rate": "learning_rates",
}
OPTIONAL = ("steps", "losses", "learning_rates")


class NormHistory:
    """The norm before clipping and the threshold of every step of a run.

    A step counts as clipped where its norm is above its threshold. Steps are counted from 0, unless they are given.

    Attributes
    ----------
    norms, max_norms : list of float
        What was recorded, one number a step. Norms may be NaN or infinite, thresholds infinite.
    steps : list of int
        The number of each step.
    losses, learning_rates : list of float
        What was recorded with each norm; NaN where nothing was.

    Examples
    --------
    >>> history = NormHistory()
    >>> for norm in (0.5, 0.8, 3.0, 0.6):
    ...     history.record(norm, max_norm=1.0)
    >>> history.clip_fraction
    0.25
    >>> print(history.summary())
    4 steps. Norm: median 0.7, 90th percentile 2.34, largest 3 (step 2).
    Clipped: 1 step (25%).
    """

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.max_norms: list[float] = []
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.learning_rates: list[float] = []

    def __len__(self) -> int:
        return len(self.norms)

    def record(
        self, norm: Any, max_norm: Any, *, step: int | None = None, loss: Any = nan, learning_rate: Any = nan
    ) -> None:
        """Add a step.

        Parameters
        ----------
        norm : float or 0-d array
            The norm before clipping, of any framework. It is read on the host; on a GPU, that waits for it.
        max_norm : float or 0-d array
            The threshold; ``inf`` where there was none.
        step : int, optional
            The number of the step; one more than the last, when None. Give it where not every step is recorded.
        loss, learning_rate : float or 0-d array, optional
            The loss and the learning rate of the same step, for ``gradclip.report``, which says what the loss did after
            a spike.

        Raises
        ------
        TypeError
            One of them is not a number or a 0-d array of them.
        ValueError
            A norm, threshold or step is negative, or ``max_norm`` is NaN. Nothing has been recorded then.

        Examples
        --------
        >>> history = NormHistory()
        >>> for step in (10, 20):
        ...     history.record(norm=0.5, max_norm=1.0, step=step, loss=2.25)
        >>> history.steps, history.losses
        ([10, 20], [2.25, 2.25])
        """
        norm, max_norm = checks.norm(norm), checks.threshold(max_norm)
        loss, learning_rate = checks.number(loss, "loss"), checks.number(learning_rate, "learning_rate")
        if step is None:
            step = self.steps[-1] + 1 if self.steps else 0
        step = checks.count(step, "step", 0, "steps are counted from 0")
        for name, value in zip(COLUMNS, (step, norm, max_norm, loss, learning_rate), strict=True):
            getattr(self, COLUMNS[name]).append(value)

    @property
    def clip_fraction(self) -> float:
        """The share of all steps that were clipped, from 0 to 1; 0 before the first."""
        return float(np.mean(self._clipped())) if self.norms else 0.0

    def quantile(self, q: float) -> float:
        """The norm below which a share of the finite norms lies, as ``numpy.quantile`` gives it.

        Parameters
        ----------
        q : float
            The share, from 0 to 1: 0.9 gives the 90th percentile.

        Returns
        -------
        float
            NaN where no finite norm has been recorded.

        Raises
        ------
        ValueError
            ``q`` is outside 0 to 1.

        Examples
        --------
        >>> history = NormHistory()
        >>> for norm in (1.0, 2.0, float("nan"), 4.0):
        ...     history.record(norm, max_norm=3.0)
        >>> history.quantile(0.5)
        2.0
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must be from 0 to 1, got {q}")
        finite = self._finite()
        return float(np.quantile(finite, q)) if finite.size else nan

    def summary(self) -> str:
        r"""What the norms say about the run, and what to do about it, in a few lines.

        It says so when more than half of the steps were clipped, or none; when norms were not finite, and where first;
        and when the norm rose or fell. For that, two things must hold of the finite norms: the median of their last
        third is at least twice, or at most half, that of their first third; and Spearman's rank correlation ρ of norm
        and step has \|ρ\|·√(n−1) > 3, as only 3 in 1000 histories of n norms in random order have.

        Returns
        -------
        str
            One line or more, without a line break at the end.

        References
        ----------
        Godbole, Dahl, Gilmer, Shallue and Nado, *Deep learning tuning playbook*, 2023: set the threshold by the 90th
        percentile of the norms; where more than half of the steps are clipped, lower the learning rate instead. That
        Adam cancels a constant factor follows from its update, m/√v: Kingma and Ba, *Adam*, ICLR 2015, section 2.1.

        Examples
        --------
        >>> history = NormHistory()
        >>> for step in range(100):
        ...     history.record(norm=0.05 * (step + 1), max_norm=1.0)
        >>> print(history.summary())
        100 steps. Norm: median 2.53, 90th percentile 4.51, largest 5 (step 99).
        Clipped: 80 steps (80%). That is more than half.
        With SGD, the threshold then sets the length of most steps: lower the learning rate instead.
        Adam divides by the size of past gradients, so there a factor common to most steps matters little.
        The norm rose: median 0.85 in the first third, 4.2 in the last. If the loss rises too, lower the learning rate.
        """
        if not self.norms:
            return "No step has been recorded."
        finite = self._finite()
        first_line = f"{_steps(len(self))}."
        if finite.size:
            median, high, largest = self.quantile(0.5), self.quantile(0.9), float(finite.max())
            first_line += f" Norm: median {median:.3g}, 90th percentile {high:.3g}, largest {largest:.3g}"
            first_line += f" (step {self.steps[self.norms.index(largest)]})."
        lines = [first_line, self._say_clipped(), self._say_trend(), self._say_nonfinite()]
        return "\n".join(filter(None, lines))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw norms and thresholds over the steps, on a logarithmic axis.

        Each clipped step has a dot at its norm, and a line from there down to its threshold. What a logarithmic axis
        cannot show stands at its ends: norms of 0 below, norms that are not finite above.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; in a new figure, when None.

        Returns
        -------
        matplotlib.axes.Axes
            For what is left to you: other limits, ``ax.figure.savefig("norms.png")``. For a title above the legend, use
            ``ax.figure.suptitle``.

        Raises
        ------
        ImportError
            Matplotlib is not installed.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        norms, max_norms, clipped = np.array(self.norms), np.array(self.max_norms), self._clipped()
        steps = np.array(self.steps)
        heights, limits = _positive_or_gap(norms), _positive_or_gap(max_norms)
        cuts = np.stack([heights, limits, np.full(len(self), nan)], axis=1)[clipped]  # much faster than vlines
        share = f"clipped ({_percent(self.clip_fraction)} of the steps)"
        ax.set(xlabel="step", ylabel="norm of the gradient", yscale="log")
        ax.plot(steps, heights, color="0.6", linewidth=1, label="norm before clipping")
        ax.plot(np.repeat(steps[clipped], 3), cuts.ravel(), color=BLUE, linewidth=0.8)
        ax.plot(steps[clipped], heights[clipped], ".", color=BLUE, label=share)
        ax.plot(steps, limits, color="black", linestyle="--", linewidth=1.5, label="threshold")
        for where, height, marker, color, label in (
            (norms == 0, 0, "v", "0.6", "norm of 0"),
            (~np.isfinite(norms), 1, "x", VERMILION, "norm not finite"),
        ):
            if where.any():
                x, y, ends = steps[where], np.full(where.sum(), height), ax.get_xaxis_transform()
                ax.plot(x, y, marker, color=color, label=label, transform=ends, clip_on=False)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3, frameon=False)  # inside, it would hide spikes
        return ax

    def state_dict(self) -> dict[str, Any]:
        """The record as lists, ``norms`` and ``max_norms``, for a checkpoint.

        A number that is not finite, which JSON has no number for, is there as the text ``"nan"`` or ``"inf"``, which
        ``float`` reads. Steps, losses and learning rates are there as well, where any were given.
        """
        state: dict[str, Any] = {"norms": _encoded(self.norms), "max_norms": _encoded(self.max_norms)}
        if self.steps != list(range(len(self))):
            state["steps"] = list(self.steps)
        for name in ("losses", "learning_rates"):
            if not all(map(isnan, getattr(self, name))):
                state[name] = _encoded(getattr(self, name))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, also from one that has no steps, losses or learning rates.

        Raises
        ------
        TypeError, ValueError
            This is no state of a `NormHistory`. Nothing has been changed then.
        """
        more = {name: state[name] for name in OPTIONAL if name in state} if isinstance(state, dict) else {}
        needed = {name: state[name] for name in state if name not in more} if more else state
        norms, max_norms = checks.entries(needed, self, "norms", "max_norms")
        norms = [checks.norm(x, "norms") for x in _decoded(norms, "norms")]
        max_norms = [checks.threshold(x, "max_norms") for x in _decoded(max_norms, "max_norms")]
        steps = [
            checks.count(x, "steps", 0, "steps are counted from 0")
            for x in _decoded(more.get("steps", list(range(len(norms)))), "steps")
        ]
        losses, rates = (
            [checks.number(x, name) for x in _decoded(more.get(name, [nan] * len(norms)), name)]
            for name in ("losses", "learning_rates")
        )
        found = {"max_norms": max_norms, "steps": steps, "losses": losses, "learning_rates": rates}
        for name, values in found.items():
            if len(values) != len(norms):
                raise ValueError(f"norms and {name} must be as long as each other, got {len(norms)} and {len(values)}")
        self.norms, self.max_norms, self.steps, self.losses, self.learning_rates = norms, *found.values()

    def to_csv(self, path: "str | os.PathLike[str]") -> None:
        """Write the record as a table: ``step,norm,max_norm``, and ``loss,learning_rate`` where any were given.

        Numbers are written so that reading them gives the same ones. ``gradclip.runs.read`` takes such a file too.
        """
        names = list(COLUMNS)[:3]
        names += [name for name in list(COLUMNS)[3:] if not all(map(isnan, getattr(self, COLUMNS[name])))]
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(names)
            table.writerows(zip(*(getattr(self, COLUMNS[name]) for name in names), strict=True))

    @classmethod
    def from_csv(cls, path: "str | os.PathLike[str]") -> Self:
        """Read what `to_csv` wrote; ``gradclip.runs.read`` takes the tables of others.

        Raises
        ------
        ValueError
            The file is no such table; the message says which line is not.
        """
        history = cls()
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            names = table.fieldnames or []
            if set(list(COLUMNS)[:3]) - set(names) or set(names) - set(COLUMNS):
                raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}, got {', '.join(names) or 'none'}")
            for row in table:
                try:
                    numbers = {name: float(row[name]) for name in names if name != "step"}
                    history.record(**numbers, step=int(row["step"]))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}, line {table.line_num}: {error}") from None
        return history

    @staticmethod
    def compare(histories: "Mapping[str, NormHistory]") -> str:
        """The records side by side, as a table with a line for each.

        Parameters
        ----------
        histories : dict of str to NormHistory
            The records, by the names that they have in the table.

        Returns
        -------
        str
            A table: steps, median, 90th percentile and largest of the finite norms, the share of the steps that was
            clipped, and the median of the last third over that of the first where the norm rose or fell.

        Examples
        --------
        >>> calm, wild = NormHistory(), NormHistory()
        >>> for step in range(30):
        ...     calm.record(norm=0.5, max_norm=1.0)
        ...     wild.record(norm=0.5 + step, max_norm=1.0)
        >>> print(NormHistory.compare({"calm": calm, "wild": wild}))
        run      steps    median       90%   largest   clipped     drift
        calm        30       0.5       0.5       0.5        0%         –
        wild        30        15      26.6      29.5     96.7%       × 5
        """
        rows = [["steps", "median", "90%", "largest", "clipped", "drift"]]
        for history in histories.values():
            quantiles = [f"{history.quantile(q):.3g}" for q in (0.5, 0.9, 1)]
            moved = trend(history._finite())
            ratio = f"× {moved[1] / moved[0]:.3g}" if moved and moved[0] else "–"
            rows.append(
                [str(len(history)), *quantiles, _percent(history.clip_fraction).replace("more than", ">"), ratio]
            )
        width = max(map(len, ["run", *histories]))
        names = ["run", *histories]
        return "\n".join(
            f"{name:{width}}" + "".join(f"{cell:>10}" for cell in row) for name, row in zip(names, rows, strict=True)
        )

    def _clipped(self) -> Any:
        return np.array(self.norms) > np.array(self.max_norms)  # False for NaN

    def _finite(self) -> Any:
        norms = np.array(self.norms)
        return norms[np.isfinite(norms)]

    def _say_clipped(self) -> str:
        fraction, finite = self.clip_fraction, self._finite()
        said = f"Clipped: {_steps(int(self._clipped().sum()))} ({_percent(fraction)})."
        if fraction and max(self.max_norms) == 0:
            return f"{said} A threshold of 0 makes every gradient 0."
        if fraction > 0.5:
            return (
                f"{said} That is more than half.\n"
                "With SGD, the threshold then sets the length of most steps: lower the learning rate instead.\n"
                "Adam divides by the size of past gradients, so there a factor common to most steps matters little."
            )
        if fraction > 0:
            return said
        if not finite.size:
            return "Clipped: none, for no norm was finite."
        if finite.max() == 0:
            return "Clipped: none, for every norm was 0: was it measured after the gradients had been set to zero?"
        start = f" {self.quantile(0.9):.3g}, the 90th percentile, is a start." if self.quantile(0.9) > 0 else ""
        if min(self.max_norms) == inf:
            return f"Clipped: none, for no step had a threshold.{start}"
        return f"Clipped: none. The threshold changed nothing; if the loss spikes, lower it.{start}"

    def _say_trend(self) -> str:
        found = trend(self._finite())
        if found is None:
            return ""
        first, last = found
        medians = f"median {first:.3g} in the first third, {last:.3g} in the last"
        if last > first:
            return f"The norm rose: {medians}. If the loss rises too, lower the learning rate."
        fixed = min(self.max_norms) == max(self.max_norms) < inf
        advice = " A fixed threshold clips ever less; those of gradclip.thresholds follow the norm." if fixed else ""
        return f"The norm fell: {medians}.{advice}"

    def _say_nonfinite(self) -> str:
        wrong = [step for step, norm in zip(self.steps, self.norms, strict=True) if not isfinite(norm)]
        if not wrong:
            return ""
        nans = sum(isnan(norm) for norm in self.norms)
        said = f"Not finite: {_steps(len(wrong))} ({nans} NaN, {len(wrong) - nans} infinite), first step {wrong[0]}."
        return f'{said} To see which arrays, clip with nonfinite="raise".'


def trend(norms: Any) -> tuple[float, float] | None:
    """The medians of the first and of the last third, where `NormHistory.summary` would say that the norm moved."""
    third = len(norms) // 3
    if third == 0:
        return None
    first, last = float(np.quantile(norms[:third], 0.5)), float(np.quantile(norms[-third:], 0.5))
    if first == last or 0.5 * max(first, last) < min(first, last):
        return None
    correlation = spearman(norms, np.arange(len(norms)))
    if abs(correlation) * (len(norms) - 1) ** 0.5 <= 3 or (correlation > 0) != (last > first):
        return None
    return first, last


def spearman(x: Any, y: Any) -> float:
    """The rank correlation of two sequences; NaN where one of them is constant."""
    ranks = [_ranks(x), _ranks(y)]
    return float(np.corrcoef(ranks)[0, 1]) if all(np.ptp(r) for r in ranks) else nan


def _ranks(x: Any) -> Any:
    _, places, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]  # equal numbers share the mean of their ranks


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _percent(fraction: float) -> str:
    text = f"{100 * fraction:.3g}%"
    return "more than 99.9%" if text == "100%" and fraction < 1 else text


def _positive_or_gap(x: Any) -> Any:
    """The numbers that a logarithmic axis can show, the others as NaN."""
    return np.where(np.isfinite(x) & (x > 0), x, nan)


def _encoded(numbers: list[float]) -> list[float | str]:
    return [x if isfinite(x) else str(x) for x in numbers]


def _decoded(numbers: Any, name: str) -> list[Any]:
    if not isinstance(numbers, list):
        raise TypeError(f"{name} must be a list of numbers, got {numbers!r} of type {type(numbers).__name__}")
    return [float(x) if x in ("nan", "inf") else x for x in numbers]
