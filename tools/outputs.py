"""Compares what a cell printed with what is stored, number by number, where the cell states a tolerance.

A cell's metadata says how far its numbers may move, and why, here in general and for two columns of a table:

    "tolerance": {"relative": 0.05, "reason": "a mean over chaotic runs"}
    "tolerance": {"columns": {"steps": {"factor": 2}, "loss": {"absolute": 0.1}}, "reason": "…"}

`absolute` bounds the difference, `relative` the difference over the stored number's size, and `factor` the larger
number over the smaller one of the same sign. Where there are columns, a number outside them obeys the tolerance beside
`columns`, or stays exact where there is none. A column is named by words of its header, in one line above its numbers,
all the named columns in the same line; a number belongs to the column whose words it stands under, wholly or in part.
In an HTML table, it is the cell with that text in the first row.

Everything between the numbers is compared as text. Spaces beside a number do not count, since a column's padding
changes with the number's width, and any other run of spaces counts as one. Digits in a word (float32, x_10, 3x) are
text, and so are those inside an HTML tag. NaN and infinity are equal to themselves alone.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise

MEASURES = {"absolute", "relative", "factor"}
NUMBER = re.compile(
    r"""(?<![\w.])[-+−]?(?:nan|inf|NaN|Infinity
    |(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)(?!\w|\.\d)""",
    re.VERBOSE,
)
TAG = re.compile(r"<[^>]*>")
ROW = re.compile(r"<tr.*?</tr>", re.DOTALL)
CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL)


def check(tolerance: object) -> None:
    """Raises ValueError for a tolerance that says something else than the text above."""
    if not isinstance(tolerance, Mapping):
        raise ValueError(f"a tolerance is a dict, got {tolerance!r}")
    columns = tolerance.get("columns", {})
    if not isinstance(columns, Mapping) or ("columns" in tolerance and not columns):
        raise ValueError(f"tolerance: columns is a dict of a tolerance for each name, got {columns!r}")
    if not isinstance(tolerance.get("reason"), str) or not tolerance["reason"].strip():
        raise ValueError("tolerance: it needs a reason, a sentence that says why the numbers move")
    general = {key: value for key, value in tolerance.items() if key not in ("columns", "reason")}
    for place, measure in [
        ("tolerance", general),
        *((f"tolerance of column {name!r}", columns[name]) for name in columns),
    ]:
        if measure is general and not general and columns:
            continue
        if not isinstance(measure, Mapping) or len(measure) != 1 or not measure.keys() <= MEASURES:
            raise ValueError(f"{place}: takes one of absolute, relative and factor, got {measure!r}")
        ((kind, size),) = measure.items()
        low, high = {"absolute": (0, float("inf")), "relative": (0, 1), "factor": (1, float("inf"))}[kind]
        if isinstance(size, bool) or not isinstance(size, int | float) or not low < size < high:
            raise ValueError(f"{place}: {kind} is a number between {low} and {high}, got {size!r}")


def value(number: str) -> Decimal:
    # In decimals, as printed: 2.2 − 2.0 is 0.2 and no more.
    return Decimal(number.replace(",", "").replace("−", "-"))


def allowed(stored: str, new: str, measure: Mapping[str, float]) -> bool:
    a, b = value(stored), value(new)
    if not (a.is_finite() and b.is_finite()):
        return str(a) == str(b)
    if a == b:
        return True
    if not measure:
        return False
    ((kind, size),) = measure.items()
    bound = Decimal(str(size))
    if kind == "factor":
        return a * b > 0 and max(abs(a), abs(b)) <= bound * min(abs(a), abs(b))
    return abs(a - b) <= (bound * abs(a) if kind == "relative" else bound)


def split(line: str, html: bool) -> tuple[list[str], list[re.Match[str]]]:
    """The text around the numbers of a line, and the numbers."""
    tags = [tag.span() for tag in TAG.finditer(line)] if html else []
    numbers = [m for m in NUMBER.finditer(line) if not any(start < m.start() < end for start, end in tags)]
    edges = [0, *(edge for m in numbers for edge in m.span()), len(line)]
    between = [re.sub(r"[ \t]+", " ", line[a:b]) for a, b in list(pairwise(edges))[::2]]
    for i in range(len(numbers)):
        between[i], between[i + 1] = between[i].rstrip(), between[i + 1].lstrip()
    return between, numbers


def in_text(text: str, names: list[str]) -> dict[int, str]:
    """The column of each number in tables of text, by where the number starts."""
    headers = [re.compile(rf"(?<!\S){re.escape(name)}(?!\S)") for name in names]
    found, columns, offset = {}, [], 0
    for line in text.split("\n"):
        matches = [list(header.finditer(line)) for header in headers]
        if names and all(matches):
            columns = [m for places in matches for m in places]
        else:
            for number in split(line, html=False)[1]:
                for m in columns:
                    if number.start() < m.end() and m.start() < number.end():
                        found[offset + number.start()] = m[0]
        offset += len(line) + 1
    return found


def in_html(text: str, names: list[str]) -> dict[int, str]:
    """The same in HTML tables."""
    found, header = {}, []
    for row in ROW.finditer(text):
        cells = list(CELL.finditer(text, *row.span()))
        words = [TAG.sub("", cell[1]).strip() for cell in cells]
        if set(names) <= set(words):
            header = words
            continue
        for name, cell in zip(header, cells, strict=False):
            for number in split(cell[1], html=True)[1] if name in names else ():
                found[cell.start(1) + number.start()] = name
    return found


def columns_of(text: str, tolerance: Mapping, html: bool) -> dict[int, str]:
    return (in_html if html else in_text)(text, list(tolerance.get("columns", {})))


def differences(stored: str, new: str, tolerance: Mapping, html: bool = False) -> list[str]:
    """What is not within the tolerance, line by line; empty when all is."""
    general = {key: size for key, size in tolerance.items() if key in MEASURES}
    columns = columns_of(stored, tolerance, html)
    lines, new_lines = stored.split("\n"), new.split("\n")
    if len(lines) != len(new_lines):
        return [f"{len(new_lines)} lines, stored are {len(lines)}"]
    found, offset = [], 0
    for at, (line, new_line) in enumerate(zip(lines, new_lines, strict=True), 1):
        (text, numbers), (new_text, new_numbers) = split(line, html), split(new_line, html)
        if len(numbers) != len(new_numbers):
            found.append(f"line {at}: {len(new_numbers)} numbers, stored are {len(numbers)}:\n  {new_line}\n  {line}")
        elif text != new_text:
            found.append(f"line {at}: the text is not the stored one:\n  {new_line}\n  {line}")
        else:
            for a, b in zip(numbers, new_numbers, strict=True):
                column = columns.get(offset + a.start())
                measure = tolerance["columns"][column] if column else general
                if not allowed(a[0], b[0], measure):
                    where = f"line {at}" + (f", column {column!r}" if column else "")
                    limit = " ".join(f"{kind} {size}" for kind, size in measure.items()) or "none, it is exact"
                    found.append(f"{where}: {b[0]}, stored is {a[0]}, tolerance: {limit}")
        offset += len(line) + 1
    return found


def texts(outputs: list) -> dict[str, list[tuple[dict, str]]]:
    """Where the texts of a cell's outputs are, by stream or MIME type, as nbval pairs them."""
    found = defaultdict(list)
    for output in outputs:
        if output["output_type"] == "stream" and output["name"] != "stderr":
            found[output["name"]].append((output, "text"))
        for mime in output.get("data", {}):
            if mime.startswith("text/"):
                found[mime].append((output["data"], mime))
    return found


def settle(stored: list, new: list, tolerance: Mapping) -> tuple[list, list[str]]:
    """The new outputs, with the stored text wherever a text is within the tolerance; and what is not within it.

    Raises ValueError when the tolerance is wrong, or is for numbers that the stored outputs do not have.
    """
    check(tolerance)
    new, found = copy.deepcopy(new), []
    stored_texts, new_texts = texts(stored), texts(new)
    all_texts = [(holder[key], kind == "text/html") for kind, places in stored_texts.items() for holder, key in places]
    if not any(split(text, html)[1] for text, html in all_texts):
        raise ValueError("tolerance: the stored output has no number")
    used = {name for text, html in all_texts for name in columns_of(text, tolerance, html).values()}
    if unused := set(tolerance.get("columns", {})) - used:
        raise ValueError(f"tolerance: the stored output has no number in column {', '.join(sorted(unused))}")
    for kind, places in stored_texts.items():
        for (old, key), (holder, _) in zip(places, new_texts[kind], strict=False):
            if differing := differences(old[key], holder[key], tolerance, kind == "text/html"):
                found += [f"{kind}, {line}" for line in differing]
            else:
                holder[key] = old[key]
    return new, found
