"""A training loop as a picture: the clipping call in its place, and the places where it would be wrong, crossed out."""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

RIGHT, WRONG = "#0072B2", "#9A4300"  # the book's blue, and its vermilion dark enough for text
FONT_SIZE = 12
CHARACTER = 0.6021 * FONT_SIZE / 72  # inches; DejaVu Sans Mono comes with matplotlib
LINE = 0.3  # inches
MARGIN = 3  # characters on the left, for ✓ and ✗
MONO: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": FONT_SIZE, "va": "center"}


class Line(NamedTuple):
    """One line of the loop: its code with its indentation, and what to say about it."""

    kind: str  # " " code as it is, "+" the call in its place, "-" the call in a wrong place
    code: str
    note: str


def parse(loop: str) -> list[Line]:
    """Lines as in a diff: the first character is the kind; two spaces and a # begin the note."""
    lines = []
    for line in loop.strip("\n").splitlines():
        if line[:1] not in ("", " ", "+", "-"):
            raise ValueError(f"a line begins with ' ', '+' or '-', got {line!r}")
        code, _, note = line[1:].partition("  # ")
        lines.append(Line(line[:1] or " ", code.rstrip(), note.strip()))
    return lines


def draw_loop(loop: str) -> Axes:
    """Draw a loop, written like a diff, on a figure that is just large enough for it.

    For example::

        draw_loop('''
             optimizer.zero_grad()
        -    clip_grad_norm_(...)   # nothing there yet
             loss.backward()
        +    clip_grad_norm_(...)   # here
             optimizer.step()
        ''')
    """
    lines = parse(loop)
    column = max((len(line.code) for line in lines if line.note), default=0) + 2
    width = MARGIN + max(column + len(line.note) if line.note else len(line.code) for line in lines) + 1
    height = len(lines) + 0.4
    figure = plt.figure(figsize=(width * CHARACTER, height * LINE), layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-MARGIN, width - MARGIN), ylim=(len(lines) - 0.3, -0.7))
    ax.axis("off")
    for y, (kind, code, note) in enumerate(lines):
        colour = {"+": RIGHT, "-": WRONG}.get(kind, "black")
        if kind == "+":
            ax.add_patch(Rectangle((0.6 - MARGIN, y - 0.48), width - 1.2, 0.96, color=RIGHT, alpha=0.12, linewidth=0))
        if kind != " ":
            ax.text(-1.4, y, "✓" if kind == "+" else "✗", color=colour, weight="bold", ha="center", **MONO)
        ax.text(0, y, code, color=colour, weight="bold" if kind == "+" else "normal", **MONO)
        ax.text(column, y, note, color=colour, **MONO)
        if kind == "-":
            ax.plot([len(code) - len(code.lstrip()), len(code)], [y, y], color=WRONG, linewidth=1.6)
    return ax
