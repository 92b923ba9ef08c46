"""A file as a stream: its lines, the entries of a JSON array, the records of TensorBoard, in bounded memory."""

import codecs
import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LONGEST = 1 << 24  # characters of one line or entry that are held in memory
CHUNK = 1 << 20
LARGE = 50_000_000  # bytes from which on reading takes long enough to show how far it has come

# What stands for an entry that cannot be read.
BROKEN = None


def encoding(start: bytes) -> str:
    """The encoding that a file's first bytes name. PowerShell's ``>`` writes UTF-16."""
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


@contextmanager
def opened(path: Path, mode: str = "r") -> Iterator[tuple[IO[Any], Any]]:
    """The file, and a function that says on a terminal's stderr how much of a large one has been read."""
    size = os.path.getsize(path)
    shown = size >= LARGE and sys.stderr.isatty()

    def progress() -> None:
        if shown:
            done = getattr(file, "buffer", file).tell()
            bar = "█" * (20 * done // size)
            print(f"\r{path.name}: {bar:20} {done / size:4.0%} of {size / 1e6:.0f} MB", end="", file=sys.stderr)

    with open(path, "rb") as raw:
        kind = encoding(raw.read(2))
    # A byte that is no text must not end the reading of a log: it spoils its own line only.
    options: dict[str, Any] = {} if mode == "rb" else {"encoding": kind, "errors": "replace"}
    with open(path, mode, **options) as file:
        try:
            yield file, progress
        finally:
            if shown:
                print(f"\r{'':{len(path.name) + 50}}\r", end="", file=sys.stderr, flush=True)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, from 1. A progress bar's carriage return ends a line as well."""
    with opened(path) as (file, progress):
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            if number % 20_000 == 0:
                progress()
            yield number, line
            while len(line) == LONGEST and not line.endswith("\n"):
                line = file.readline(LONGEST)


def items(path: Path, start: "re.Pattern[str]") -> Iterator[tuple[int, Any]]:
    """The entries of the JSON array that follows the first match, with their numbers, from 1.

    Where the array breaks off, or something in it is not JSON, `BROKEN` is the last entry.
    """
    decode = json.JSONDecoder().raw_decode  # takes NaN and Infinity, as Python's json.dump writes them
    separators = re.compile(r"[\s,]*")
    with opened(path) as (file, progress):
        text = file.read(CHUNK)
        while not (found := start.search(text)):
            more = file.read(CHUNK)
            if not more:
                return
            text = text[-200:] + more
        at, number = found.end(), 0
        while True:
            at = separators.match(text, at).end()  # type: ignore[union-attr]
            if text[at : at + 1] == "]":
                return
            try:
                entry, at = decode(text, at)
            except ValueError:  # of the entry, only the beginning has been read, or it is no JSON
                more = file.read(CHUNK) if len(text) - at < LONGEST else ""
                if not more:
                    yield number + 1, BROKEN
                    return
                text, at = text[at:] + more, 0
                progress()
            else:
                number += 1
                yield number, entry


def records(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The records of a TFRecord file, with their numbers, from 1: each is its length, a checksum, bytes, a checksum."""
    with opened(path, "rb") as (file, progress):
        number = 0
        while head := file.read(12):
            number += 1
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            record = file.read(length) if length < LONGEST else b""
            if len(head) < 12 or len(record) < length or len(file.read(4)) < 4:
                yield number, BROKEN  # the process that wrote it was stopped, or writes on
                return
            if number % 20_000 == 0:
                progress()
            yield number, record
