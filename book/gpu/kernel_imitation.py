"""The kernels of gradclip/backends/triton_kernels.py in NumPy: the same chunks, turns and order, every byte counted."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

CHUNK = 16384  # elements: 64 KB of float32
LANES = 1024  # places in which a program adds
Array = np.ndarray[Any, Any]


class Memory:
    """Numbers far from the chip: every byte that is read or written is counted."""

    def __init__(self, values: Array) -> None:
        self.values = np.array(values)
        self.read = self.written = 0

    def load(self, where: slice) -> Array:
        x: Array = self.values[where].copy()
        self.read += x.nbytes
        return x

    def store(self, where: slice, x: Array) -> None:
        self.values[where] = x
        self.written += self.values[where].nbytes

    @property
    def chunks(self) -> list[slice]:
        return [slice(start, start + CHUNK) for start in range(0, len(self.values), CHUNK)]


def sum_squares(memory: Memory, programs: int) -> Array:
    """Each program's share of the squares: a chunk's are summed in LANES places, in float32, and those in float64."""
    chunks = memory.chunks
    partials = np.zeros(programs)
    for program in range(programs):
        sums = np.zeros(LANES)
        largest = np.float32(0)
        for chunk in range(program, len(chunks), programs):
            x = memory.load(chunks[chunk])
            squares = chunk_squares(x)
            largest = np.fmax(largest, np.sum(squares))
            unit = np.float32(1)
            if not (np.sum(squares) < np.inf and largest >= 2.0**-64):  # once more: x is on the chip already
                unit = np.float32(2.0**-90 if np.sum(squares) < 1 else 2.0**70)
                squares = chunk_squares(x / unit)
            sums += squares * np.float64(unit) ** 2
        partials[program] = np.cumsum(sums)[-1]  # one after the other: a fixed order
    return partials


def chunk_squares(x: Array) -> Array:
    sums = np.zeros(LANES, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for row in np.pad(x, (0, -len(x) % LANES)).reshape(-1, LANES):
            sums += row * row
    return sums


def join(partials: Array) -> float:
    return math.sqrt(np.cumsum(partials)[-1])


def multiply(memory: Memory, norm: float, max_norm: float) -> None:
    if norm <= max_norm:
        return  # without a look at any gradient
    for where in reversed(memory.chunks):  # what was read last may still be in a cache
        memory.store(where, memory.load(where) * np.float32(max_norm / norm))


def three_kernels(memory: Memory, max_norm: float, programs: int = 6) -> float:
    """What gradclip does on a GPU."""
    norm = join(sum_squares(memory, programs))
    multiply(memory, norm, max_norm)
    return norm


def always_multiply(memory: Memory, max_norm: float) -> float:
    """A norm, then a product with min(1, c/n) whatever n is: no one needs to know whether to clip."""
    norm = join(sum_squares(memory, 6))
    for where in memory.chunks:
        memory.store(where, memory.load(where) * np.float32(min(1.0, max_norm / norm)))
    return norm


def textbook(memory: Memory, max_norm: float) -> float:
    """``(g**2).sum()``, then ``g *= min(1, c/n)``: the squares are an array of their own, written and read."""
    whole = slice(None)
    squares = Memory(np.empty_like(memory.values))
    squares.store(whole, memory.load(whole) ** 2)
    norm = math.sqrt(squares.load(whole).sum(dtype=np.float64))
    memory.store(whole, memory.load(whole) * np.float32(min(1.0, max_norm / norm)))
    memory.read += squares.read
    memory.written += squares.written
    return norm


def passes(clip: Callable[[Memory, float], float], values: Array, max_norm: float) -> tuple[float, float]:
    """How often a function reads and writes all of the values."""
    memory = Memory(values)
    clip(memory, max_norm)
    return memory.read / memory.values.nbytes, memory.written / memory.values.nbytes


# Blue's accumulators --------------------------------------------------------------------------------------------------


def blue(x: Array) -> float:
    """The norm of float64 numbers; their squares are summed by size, big and small ones scaled first."""
    is_big, is_small = np.abs(x) > 2.0**486, np.abs(x) < 2.0**-511
    big = np.sum((x[is_big] * 2.0**-538) ** 2)
    small = np.sum((x[is_small] * 2.0**537) ** 2)
    medium = np.sum(x[~is_big & ~is_small] ** 2)
    if big > 0:
        return float(np.sqrt(big + medium * 2.0**-538 * 2.0**-538) * 2.0**538)
    if medium < 2.0**-900:
        return float(np.sqrt(small + medium * 2.0**537 * 2.0**537) * 2.0**-537)
    return float(np.sqrt(medium))
