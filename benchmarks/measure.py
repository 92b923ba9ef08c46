"""Measures one framework on one set of shapes, in a process whose threads and memory no other framework shares.

Usage: python -m benchmarks.measure speed FRAMEWORK SET ROUNDS
       python -m benchmarks.measure memory FRAMEWORK SET {gradclip,functional,own}
       python -m benchmarks.measure sharded torch SET 2

Each step ends in one line on standard output: the table of the record that it belongs to, and its rows.
"""

import ctypes
import gc
import json
import math
import sys
from functools import partial
from itertools import accumulate, repeat
from operator import mul
from pathlib import Path

import numpy as np

from . import sharded
from .frameworks import FRAMEWORKS
from .shapes import SHAPES, elements
from .timing import Call, Row, compare, wall_time


def speed(framework: str, name: str, rounds: int) -> None:
    about = {"framework": framework, "set": name}
    arrays = gradients(name)
    norm = math.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays))
    contest = FRAMEWORKS[framework](arrays)
    clips = {"gradclip": contest.gradclip, "own": contest.own}
    # Tracing and compiling, where there is any, are paid here and by no later call.
    first = {who: wall_time(partial(clip, 2 * norm)) for who, clip in clips.items()}
    emit("first_call", [{**about, "who": who, "seconds": seconds} for who, seconds in first.items()])
    # Right before fast.
    norms = zip(clips, contest.norms(), strict=True)
    emit("accuracy", [{**about, "who": who, "relative_error": abs(float(n) / norm - 1)} for who, n in norms])
    # Clipping in place shrinks the gradients. So each clipped call asks for 1 % less than the one before it left: all
    # of them have to clip, and nothing is copied in between, which would change what is in the cache.
    shrinking = accumulate(repeat(0.99), mul, initial=0.99 * norm)
    for case, c in (("unclipped", repeat(2 * norm)), ("clipped", shrinking)):
        calls = {who: lambda clip=clip, c=c: clip(next(c)) for who, clip in clips.items()}
        emit("seconds", [{**about, "case": case, **row} for row in compare(calls, rounds)])
    if contest.in_place:
        del arrays, contest, clips, calls
        floor = FRAMEWORKS[framework]([np.ones(elements(name), np.float32)])
        rows = compare({"read": floor.read, "read and write": floor.write}, rounds)
        emit("floor", [{**about, **row} for row in rows])


def memory(framework: str, name: str, who: str) -> None:
    """How far a clip raises the peak above what is resident before it, its result taken off."""
    contest = FRAMEWORKS[framework](gradients(name))
    contest.compile()
    in_place = contest.in_place and who != "functional"
    extra = peak_above_resident(partial(getattr(contest, who), 1.0)) - (0 if in_place else 4 * elements(name))
    emit("memory", [{"framework": framework, "set": name, "who": who, "in_place": in_place, "bytes": extra}])


def gradients(name: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal(shape, np.float32)) for shape in SHAPES[name]]


def peak_above_resident(call: Call) -> int:
    """In bytes, for a first call: TensorFlow keeps what it has freed, and a second one would seem to cost nothing.

    Linux alone lets a process lower its peak to what is resident now.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that malloc kept would be used again, and not be seen
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    result = call()
    after = peak()
    del result  # it was resident until here
    return after - before


def peak() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def emit(table: str, rows: list[Row]) -> None:
    print(json.dumps([table, rows]), flush=True)


if __name__ == "__main__":
    task, framework, name, last = sys.argv[1:]
    if task == "speed":
        speed(framework, name, int(last))
    elif task == "sharded":
        emit("sharded", sharded.measure(name, ranks=int(last)))
    else:
        memory(framework, name, last)
