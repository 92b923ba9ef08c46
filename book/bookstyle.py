"""What the book's notebooks share: the look of their figures, and tables that a browser and a terminal both align."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap
from matplotlib_inline.backend_inline import set_matplotlib_formats

HERE = Path(__file__).parent

# For maps of an error on a log scale: a valley is gold, a plain pale, a plateau grey, and lines show on all of it.
ERRORS = LinearSegmentedColormap.from_list(
    "errors",
    [
        (0, "#D69814"),
        (0.35, "#F0C35A"),
        (0.62, "#F7E8C4"),
        (0.77, "#F3F0E9"),
        (0.9, "#CDCAD6"),
        (1, "#BEBBCB"),
    ],
)


def use() -> None:
    """Gives the figures of this notebook the book's colours and typeface."""
    for font in (HERE / "_static" / "fonts").glob("*.ttf"):
        font_manager.fontManager.addfont(font)
    plt.style.use(HERE / "book.mplstyle")
    set_matplotlib_formats("retina")  # two pixels for one, for a screen that has them


class Table:
    """A table for the last line of a cell.

    Jupyter and the book show it as HTML, numbers to the right and words to the left; a terminal shows aligned text.

    Parameters
    ----------
    columns
        Each column under its head, which names the unit: ``{"c": [0.1, 1], "longest step (m)": [0.5, 3.25]}``.
    formats
        How a column's numbers are written, by its head: ``{"longest step (m)": ".2f"}``. Other cells are shown as they
        are.

    Examples
    --------
    >>> Table({"rule": ["by norm", "by value"], "turned by (°)": [0, 22.38]}, {"turned by (°)": ".1f"})
    rule      turned by (°)
    by norm             0.0
    by value           22.4
    """

    def __init__(
        self,
        columns: Mapping[str, Iterable[object]],
        formats: Mapping[str, str] | None = None,
    ):
        if unknown := [head for head in formats or {} if head not in columns]:
            raise ValueError(
                f"formats for columns that are not there: {unknown}; there are {list(columns)}"
            )
        cells = {head: list(column) for head, column in columns.items()}
        self.heads = list(cells)
        self.right = [
            not any(isinstance(cell, str) for cell in column)
            for column in cells.values()
        ]
        written = [
            [
                cell
                if isinstance(cell, str)
                else format(cell, (formats or {}).get(head, ""))
                for cell in column
            ]
            for head, column in cells.items()
        ]
        # A minus, which is as wide as a plus; a hyphen is not.
        self.rows = [
            [
                cell.replace("-", "−") if right else cell
                for cell, right in zip(row, self.right, strict=True)
            ]
            for row in zip(*written, strict=True)
        ]

    def __repr__(self) -> str:
        rows = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, self.right, strict=True)
            )
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        def row(cells: list[str], tag: str) -> str:
            sides = ["right" if right else "left" for right in self.right]
            return "<tr>{}</tr>".format(
                "".join(
                    f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>'
                    for cell, side in zip(cells, sides, strict=True)
                )
            )

        body = "\n".join(row(cells, "td") for cells in self.rows)
        return f"<table>\n<thead>{row(self.heads, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
