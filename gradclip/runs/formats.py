"""The formats of logs: how each is recognised, by its content, and how its rows are read."""

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from . import streams
from .columns import RANKS, flat, is_norm

KINDS = (
    "logs are JSON, JSON lines, CSV, TensorBoard's event files, and text as Megatron-LM, torchtitan, nanoGPT, fairseq, "
    "mmengine, LeRobot and the Hugging Face Trainer print it"
)
ADVICE = (
    "Log what the clipping function returns, the norm before clipping; if the log has it by another name, give that "
    "with key= (on the command line, --key)"
)

# A row by its place in the file, and what it holds; BROKEN where it cannot be read.
Rows = Iterator[tuple[int, dict[str, Any] | None]]
BROKEN = streams.BROKEN


class LogError(ValueError):
    """A log that cannot be read, or that holds nothing a threshold could be judged by."""


@dataclass
class Beside:
    """What a log says outside its rows."""

    max_norm: float | None = None
    optimizer: str | None = None
    skipped: int = 0


# Reads the rows of a file, given the name of the norm, where the reader gave one, and a place for what stands beside.
Reader = Callable[[Path, str | None, Beside], Rows]


@dataclass(frozen=True)
class Format:
    """One kind of log: whether a file's beginning is of this kind, how it is read, and which mean it logs, if any."""

    name: str
    recognise: Callable[[str], bool]
    read: Reader
    averaged: str = ""


# JSON -----------------------------------------------------------------------------------------------------------------

LOG_HISTORY = re.compile(r'"log_history"\s*:\s*\[')


def _json_keys(head: str) -> set[str]:
    """The keys of the first rows, where these are JSON lines; none where they are not."""
    keys = set[str]()
    if head.lstrip().startswith("{"):
        for line in head.lstrip().split("\n", 20)[:20]:
            with contextlib.suppress(ValueError, RecursionError):  # of a line that is cut off
                row = json.loads(line)
                # The last line of ms-swift holds all others once more; a Trainer's state may be a single line.
                keys |= row.keys() if isinstance(row, dict) and "log_history" not in row else set()
    return keys


def _json_lines(path: Path, key: str | None, beside: Beside) -> Rows:
    for where, line in streams.lines(path):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield where, BROKEN
        else:
            yield where, flat(row) if isinstance(row, dict) else BROKEN


def _json_items(start: "re.Pattern[str]") -> Callable[[Path, str | None, Beside], Rows]:
    def rows(path: Path, key: str | None, beside: Beside) -> Rows:
        for where, row in streams.items(path, start):
            yield where, flat(row) if isinstance(row, dict) else BROKEN

    return rows


# Tables ---------------------------------------------------------------------------------------------------------------

# 'name': 3.62e-06, in a dict as Python or JSON prints it, the number perhaps as a text or as np.float64(3.62e-06)
QUOTED = re.compile(r"""['"]([^'"{}]+)['"]\s*:\s*['"]?(?:(?:np\.|numpy\.)?(?:float\d+|tensor)\()?([^\s'",{}()\[\]]+)""")


def _delimiter(head: str) -> str:
    """What separates the names in a table's first line; "" where this is no table."""
    first, second = (head.lstrip("\n") + "\n\n").split("\n")[:2]
    delimiter = max(",\t;", key=first.count)
    names = [name.strip(' "\r') for name in first.split(delimiter)]
    some = any(plain(name) in RANKS or is_norm(plain(name)) for name in names)
    even = second.count(delimiter) >= len(names) - 1 > 0 or (len(names) > 1 and not second.strip())
    return delimiter if some and even and not any(":" in name or "=" in name for name in names) else ""


def _table(path: Path, key: str | None, beside: Beside) -> Rows:
    numbered = streams.lines(path)
    _, head = next(((where, line) for where, line in numbered if not line.isspace()), (0, ""))
    delimiter = max(",\t;", key=head.count)
    names = [name.strip() for name in next(csv.reader([head], delimiter=delimiter))]
    for where, line in numbered:
        if line.isspace():
            continue
        try:
            cells = next(csv.reader([line], delimiter=delimiter))
        except (csv.Error, StopIteration):
            cells = []
        if len(cells) != len(names):
            yield where, BROKEN
            continue
        row = dict[str, Any](zip(names, cells, strict=True))
        for name, cell in zip(names, cells, strict=True):
            if cell.startswith("{"):  # RLlib's progress.csv holds whole dicts as texts
                row |= {f"{name}/{inner}": value for inner, value in QUOTED.findall(cell)}
                del row[name]
        yield where, row


# TensorBoard ----------------------------------------------------------------------------------------------------------


def _events(path: Path, key: str | None, beside: Beside) -> Rows:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise LogError(
            f"{path} is TensorBoard's, which the package tensorboard reads: pip install gradclip[tensorboard]"
        ) from None
    for where, record in streams.records(path):
        if record is BROKEN:
            yield where, BROKEN
            continue
        try:
            event = Event.FromString(record)
        except Exception:  # protobuf has a class of its own for this in each of its implementations
            yield where, BROKEN
            continue
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield where, {value.tag: value.simple_value, "step": event.step}
            elif (
                value.HasField("tensor")
                and (array := make_ndarray(value.tensor)).size == 1
                and array.dtype.kind in "fiu"
            ):
                yield where, {value.tag: array.item(), "step": event.step}


# Text -----------------------------------------------------------------------------------------------------------------

COLOUR = re.compile(r"\x1b\[[\d;]*m")
VALUE = r"""([^\s,;|:'"})\]]+)"""
WORDS = (
    r"(?i)(?<![\w/.])((?:\w+/)*(?:global_step|step|iteration|iter|epoch|train_loss|loss|learning_rate|lr|loss_scale|"
    r"(?:\w+_)?grad(?:ient)?[_ ]?norm\w*|gnorm|norm))[\"']?\s*[:=]?\s*[\"']?"
) + VALUE
# What a log says of its settings, on other lines: clip_grad = 1.0, "max_grad_norm": 1.0, clip_grad=dict(max_norm=35, …)
SETTING = re.compile(
    r"\b(?:max[-_]grad[-_]norm|clip[-_]grad[-_]norm|grad[-_]clip[-_]norm|grad[-_]norm[-_]clip|clip[-_]grad|grad[-_]clip|"
    r"clip[-_]norm|gradient[-_]clipping|gradient[-_]clip[-_]val)['\"]?[\s.:=]+(?:dict\(\s*max_norm\s*=\s*)?"
    r"(\d+(?:\.\d+)?(?:e-?\d+)?)(?![\w.])"
)
OPTIMIZER = re.compile(
    r"\boptim(?:izer)?(?:_name|_type)?['\"]?[\s.:=]+"
    r"(?:(?:dict\(|\{)[^)}]*?(?:type|name)['\"]?\s*[:=]\s*)?['\"]?(?!dict\b)([A-Za-z]\w+)"
)
SKIPPED = re.compile(r"OVERFLOW!.*[Ss]kipping step")


@dataclass(frozen=True)
class Text:
    """A log of lines, which may stand among others.

    A line that `marks` matches is a row, and `pairs` finds the names and values in it. Where none of them is the step,
    `step` finds it: the number in an epoch or a run, and for the former the epoch and its length. A row without `end`
    has been cut off.
    """

    name: str
    marks: str
    pairs: str = WORDS
    step: str = ""
    end: str = ""
    averaged: str = ""

    def row(self, line: str) -> dict[str, Any] | None:
        """The names and values of a row."""
        if self.end not in line:
            return BROKEN
        row = dict[str, Any](reversed(re.findall(self.pairs, line)))  # of a name that comes twice, the first
        if self.step and (found := re.search(self.step, line)):
            numbers = {name: int(text) for name, text in found.groupdict().items() if text}
            row["step"] = (
                numbers["step"] + (numbers["epoch"] - 1) * numbers["length"] if "epoch" in numbers else found["step"]
            )
        return row

    def recognise(self, line: str, key: str | None) -> bool:
        """Whether a line is a row of this kind that has a norm."""
        text = self.with_key(key)
        row = text.row(line) if re.search(text.marks, line) else BROKEN
        return row is not BROKEN and any(name == key or is_norm(plain(name)) for name in row)

    def read(self, path: Path, key: str | None, beside: Beside) -> Rows:
        """The rows of a file; what its other lines say goes to `beside`."""
        text = self.with_key(key)
        for where, line in streams.lines(path):
            if "\x1b" in line:
                line = COLOUR.sub("", line)
            if beside.max_norm is None and (found := SETTING.search(line)):
                beside.max_norm = float(found[1])
            if re.search(text.marks, line):
                yield where, text.row(line)
                continue
            if beside.optimizer is None and (found := OPTIMIZER.search(line)):
                beside.optimizer = found[1].lower()
            beside.skipped += SKIPPED.search(line) is not None

    def with_key(self, key: str | None) -> "Text":
        """The same, finding the name that the reader gave among the words."""
        if not key or self.pairs != WORDS:
            return self
        name = re.escape(key)
        return replace(self, marks=f"{self.marks}|{name}", pairs=WORDS.replace("|norm)", f"|norm|{name})"))


ESPNET = re.compile(r"epoch:train:.*\bgrad_norm=[^,]+, clip=([\d.]+)")
SIMPLE = r"(\w+):\s*" + VALUE
TEXTS = (
    Text(
        "Megatron-LM",
        marks=r"\biteration\s+\d+/\s*\d+ \|",
        pairs=r"\b([a-z][a-z ]*?)(?: \(ms\))?:\s+([^|\s]+)\s*\|",
        step=r"\biteration\s+(?P<step>\d+)/",
    ),
    Text(
        "LeRobot",
        marks=r"\bstep:\S+ .*\bgrdn:",
        pairs=SIMPLE,
        averaged="LeRobot logs the mean of all steps since the line before",
    ),
    Text(
        "mmengine",
        marks=r"\b(?:Epoch|Iter)\s?(?:\(train\))?\s*\[[\d\s]+[]/].*\btime: ",
        pairs=r"(\w+):\s+" + VALUE,
        step=r"\b(?:Epoch|Iter)\s?(?:\(train\))?\s*(?:\[(?P<epoch>\d+)\]\s*)?\[\s*(?P<step>\d+)/\s*(?P<length>\d+)\]",
        averaged="mmengine logs the mean of the last 10 steps, unless log_processor says otherwise",
    ),
    Text(
        "fairseq",
        marks=r"[\"']gnorm[\"']:|\bgnorm=",
        pairs=r"(\w+)[\"']?\s*[:=]\s*[\"']?" + VALUE,
        averaged="fairseq logs the mean of all steps since the line before",
    ),
    Text("torchtitan", marks=r"\bstep:\s*\d+\s+loss:\s*\S+\s+grad_norm:", pairs=SIMPLE),
    Text(
        "printed dicts",
        marks=r"\{.*['\"][\w/.]*(?:grad_?norm|gnorm)\w*['\"]\s*:",
        pairs=QUOTED.pattern,
        end="}",
    ),
    Text("lines of text", marks=r"(?i)\bg?norm\b|grad(?:ient)?[_ ]?norm"),
)


def plain(name: str) -> str:
    """The last part of a name, as `is_norm` takes it."""
    return re.sub(r"[\s-]+", "_", name.lower()).rpartition("/")[2]


# The table ------------------------------------------------------------------------------------------------------------

FORMATS = (
    Format("RLlib's result.json", lambda head: "training_iteration" in _json_keys(head), _json_lines),
    Format(
        "mmengine's scalars.json",
        lambda head: "data_time" in _json_keys(head),
        _json_lines,
        "mmengine logs the mean of the last 10 steps, unless log_processor says otherwise",
    ),
    Format("JSON lines", lambda head: bool(_json_keys(head)), _json_lines),
    Format(
        "Trainer state",
        lambda head: head.lstrip().startswith("{") and LOG_HISTORY.search(head) is not None,
        _json_items(LOG_HISTORY),
    ),
    Format("JSON array", lambda head: re.match(r"\s*\[\s*\{", head) is not None, _json_items(re.compile(r"\["))),
    Format("CSV", lambda head: bool(_delimiter(head)), _table),
)


def recognised(path: Path, key: str | None) -> Format:
    """The format of a file, by what is in it.

    Raises
    ------
    LogError
        It is no log, or none that holds norms.
    """
    with open(path, "rb") as file:
        start = file.read(streams.CHUNK)
    if start.startswith(b"version https://git-lfs"):
        raise LogError(f"{path} is no log but the pointer to one, as Git LFS leaves it: run `git lfs pull` first")
    if b"brain.Event:" in start[:64]:
        return Format("TensorBoard", lambda head: True, _events)
    kind = streams.encoding(start)
    if start[:2] == b"\x1f\x8b" or start[:4] in (b"PK\x03\x04", b"\x28\xb5\x2f\xfd"):
        raise LogError(f"{path} is compressed: unpack it first")
    if kind != "utf-16" and b"\0" in start:
        raise LogError(f"{path} is a binary file of no kind known here: {KINDS}")
    head = start.decode(kind, errors="replace")
    if not head.strip():
        raise LogError(f"{path} is empty")
    for one in FORMATS:
        if one.recognise(head):
            return one
    likely = re.compile("(?i)norm|grdn" + (f"|{re.escape(key)}" if key else ""))
    for _, line in streams.lines(path):
        if not likely.search(line):
            continue
        line = COLOUR.sub("", line)
        if ESPNET.search(line):
            _refuse_espnet(path)
        for text in TEXTS:
            if text.recognise(line, key):
                return Format(text.name, lambda head: True, text.read, text.averaged)
    raise LogError(
        f"no line of {path} has {repr(key) if key else 'a norm of the gradient, as grad_norm or gnorm'}. {ADVICE}"
    )


def _refuse_espnet(path: Path) -> NoReturn:
    shares = [share for _, line in streams.lines(path) for share in ESPNET.findall(line)]
    raise LogError(
        f"{path} is a log of ESPnet: its grad_norm is a mean over many steps, by which no threshold can be judged, and "
        f"its clip is no threshold but the percentage of steps that were clipped, {shares[-1]} in the last line"
    )
