"""The times that the kernels should take, computed and not measured: ``python -m benchmarks.expected``.

They follow from bytes, from the operations in the machine code (tests/test_kernel_matrix.py counts them), and from
rates that are published.
"""

from typing import NamedTuple

from .record import table
from .shapes import SETS, elements


class Chip(NamedTuple):
    """Published figures: memory in GB/s, clock in GHz, and what a multiprocessor starts in a clock.

    The rates of float64 additions and of conversions from and to 64-bit types are in NVIDIA's CUDA C++ Programming
    Guide, "Throughput of Native Arithmetic Instructions"; they are 2 and 2 for compute capabilities 7.5 and 8.9, and 64
    and 16 for 9.0. Memory, clock and multiprocessors are in the data sheets of the T4 and of the H100 SXM5, and in the
    white paper of the Ada architecture for the RTX 4090.
    """

    memory: float
    clock: float
    multiprocessors: int
    float64: int
    conversions: int


CHIPS = {
    "RTX 4090": Chip(1008, 2.52, 128, 2, 2),
    "T4": Chip(320, 1.59, 40, 2, 2),
    "H100": Chip(3350, 1.98, 132, 64, 16),
}
OF_THE_PEAK = 0.9  # of the memory's bandwidth, for a kernel that only reads
LAUNCHES = 9.0  # µs: start and end of the first kernel, join, and a multiply that returns at once
WIDTHS = {"float32": 4, "bfloat16": 2}
# Conversions, and operations in float64, for each number: the kernels up to this change had one of each. Now each of
# 256 threads has five of each in a chunk of 64 KB: 64 numbers of float32, 128 of bfloat16.
OPERATIONS = {"before": {"float32": 1.0, "bfloat16": 1.0}, "now": {"float32": 5 / 64, "bfloat16": 5 / 128}}


def read(chip: Chip, numbers: int, width: int) -> float:
    """µs to read so many numbers once."""
    return numbers * width / (OF_THE_PEAK * chip.memory * 1e3)


def arithmetic(chip: Chip, numbers: int, operations: float) -> float:
    """µs of float64, with no reading beside it: where both rates are 2, one unit does both; else they are apart."""
    each, conversion = operations / chip.float64, operations / chip.conversions
    clocks = each + conversion if chip.float64 == chip.conversions else max(each, conversion)
    return numbers * clocks / (chip.multiprocessors * chip.clock * 1e3)


def rows() -> list[list[str]]:
    found = []
    for name, chip in CHIPS.items():
        for dtype, width in WIDTHS.items():
            for its in SETS:
                reading = read(chip, elements(its), width)
                before, now = (
                    max(reading, arithmetic(chip, elements(its), OPERATIONS[when][dtype])) for when in ("before", "now")
                )
                times = (reading, before + LAUNCHES, now + LAUNCHES, now + LAUNCHES + 2 * reading)
                found.append([name, its, dtype, *(f"{t:.4g}" for t in times)])
    return found


if __name__ == "__main__":
    print(table(["chip", "set", "dtype", "one read", "unclipped, before", "unclipped, now", "clipped, now"], rows()))
