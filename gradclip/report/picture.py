"""A run's norms drawn with characters: a logarithmic axis, the threshold, and how much of each stretch it clips."""

from collections.abc import Callable
from math import ceil, floor, inf, log10

import numpy as np

from .facts import Facts
from .verdict import number

CLIPPED, LOST, PLAIN = "\x1b[36m", "\x1b[31m", "\x1b[0m"  # cyan, red
LEVELS = " ▁▂▃▄▅▆▇█"


def draw(facts: Facts, width: int = 80, height: int = 14, colour: bool = False) -> str:
    """The picture, in lines of at most `width` characters, without a line break at the end.

    Every column is a stretch of the run: a dot at its median norm, a bar over nine tenths of its norms, and a point at
    its largest.
    """
    shown = facts.finite & (facts.all > 0)
    if not shown.any():
        return ""
    # Of a short run, each norm has a column and blanks beside it.
    stretches = np.array_split(np.arange(facts.count), min(width - 9, facts.count))
    wide = (width - 9) // len(stretches)
    columns = wide * len(stretches)
    low, high = _range(facts, shown)
    per_row = (log10(high) - log10(low)) / (height - 1)

    def row(norm: float) -> int:
        return min(height - 1, max(0, round((log10(high) - log10(norm)) / per_row)))

    at = row(facts.max_norm) if low <= facts.max_norm <= high else None
    cells = [[("─", "") if r == at else (" ", "") for _ in range(columns)] for r in range(height)]
    for column, places in enumerate(stretches):
        norms = facts.all[places][shown[places]]
        if norms.size:
            most, top, middle, bottom = (row(float(np.quantile(norms, q))) for q in (1, 0.95, 0.5, 0.05))
            for r in {most, *range(top, bottom + 1)}:
                above = at is not None and (r < at or (r == at == middle and facts.clipped[places].mean() > 0.5))
                cells[r][wide * column] = (
                    "•" if r == middle else "│" if r >= top else "·",
                    CLIPPED if above or facts.max_norm < low else "",
                )
        if not facts.finite[places].all():
            cells[0][wide * column] = "×", LOST
    labels = _labels(low, high, row, at, facts.max_norm)
    lines = [
        f"{labels.get(r, ''):>7} {'┼' if r == at else '┤' if r in labels else '│'}" + _painted(cells[r], colour)
        for r in range(height)
    ]
    first, last = f"step {facts.steps[0]}", str(facts.steps[-1])
    last = last if facts.count > 1 and columns > len(first + last) else ""
    lines.append(" " * 8 + "└" + "─" * columns)
    lines.append(" " * 9 + first + last.rjust(max(0, columns - len(first))))
    if facts.clip_fraction:
        shares = [facts.clipped[places].mean() for places in stretches]
        bars = [(LEVELS[ceil(8 * share)], CLIPPED) for share in shares for _ in range(wide)]
        lines.append("clipped │" + _painted(bars, colour))
    return "\n".join(line.rstrip() for line in lines)


def _range(facts: Facts, shown: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> tuple[float, float]:
    """The ends of the axis: all norms, and the threshold where it is at most a factor of 100 away from them."""
    norms = facts.all[shown]
    low, high = float(norms.min()), float(norms.max())
    # A few tiny norms would leave no room for all others.
    low = max(low, float(np.quantile(norms, 0.01)) / 10)
    if 0 < facts.max_norm < inf and low / 100 <= facts.max_norm <= 100 * high:
        low, high = min(low, facts.max_norm), max(high, facts.max_norm)
    return (low, high) if high > 1.5 * low else (low / 1.5, high * 1.5)


def _labels(low: float, high: float, row: Callable[[float], int], at: int | None, max_norm: float) -> dict[int, str]:
    """What stands beside which row: the threshold, and round numbers at least two rows from any other."""
    labels = {} if at is None else {at: number(max_norm)}
    for digits in ((1,), (1, 2, 5)):
        for exponent in range(floor(log10(low)), ceil(log10(high)) + 1):
            for digit in digits:
                tick = digit * 10.0**exponent
                if low <= tick <= high and all(abs(row(tick) - other) >= 2 for other in labels):
                    labels[row(tick)] = f"{tick:g}"
    return labels


def _painted(cells: list[tuple[str, str]], colour: bool) -> str:
    if not colour:
        return "".join(character for character, _ in cells)
    painted, last = "", ""
    for character, code in cells:
        painted += (code or PLAIN if code != last else "") + character
        last = code
    return painted + (PLAIN if last else "")
