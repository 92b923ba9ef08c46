"""The times that the kernels should take, computed and not measured: ``python -m benchmarks.expected``.

They follow from bytes, from the operations in the machine code (tests/test_kernel_matrix.py counts them), and from
rates that are published.
"""

from typing import NamedTuple

from .record import table
from .shapes import SETS, elements


class Chip(NamedTuple):
    """Published figures: memory in GB/s, clock in GHz, and what a multiprocessor starts in a clock.

    float64: NVIDIA, "CUDA Programming Guide", Compute Capabilities, "Ratio of FP32 to FP64 Throughput":
    https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html. That is 32:1 of 64 for
    7.5 (the T4), 64:1 of 128 for 8.9 (the RTX 4090) and 2:1 of 128 for 9.0 (the H100).

    conversions: NVIDIA, "CUDA C++ Best Practices Guide", Throughput of Native Arithmetic Instructions, the row "Type
    conversions from and to 64-bit types": https://docs.nvidia.com/cuda/cuda-c-best-practices-guide. This row alone was
    seen only in an edition that ends at 7.x. A wrong figure for the H100 would not show: at 16, and at 8, its time is
    that of reading. On the other two, one unit does both, at the rate of float64.
    """

    memory: float
    clock: float
    multiprocessors: int
    float64: int
    conversions: int


CHIPS = {
    # "NVIDIA GeForce RTX 4090 GPU Family Specifications", for memory and clock:
    # https://www.thefpsreview.com/gpu-family/nvidia-geforce-rtx-4090-gpu-family-specifications
    # Multiprocessors and clock as OpenCL reports them, with 0.86 to 0.91 of the bandwidth and two float64 operations in
    # a clock measured, "results for NVIDIA GeForce RTX 4090": https://github.com/krrishnarraj/clpeak/issues/106
    "RTX 4090": Chip(1008, 2.52, 128, 2, 2),
    # "NVIDIA Tesla T4 Graphics Card": https://sysrqmts.com/en/gpus/nvidia/tesla/t4. The same in what CUDA's deviceQuery
    # reports: https://gist.github.com/Terminus-IMRC/5e4b7782c27106dec287050b323cd059
    "T4": Chip(320, 1.59, 40, 2, 2),
    # The data sheet's table of the H100 SXM, for memory and multiprocessors:
    # https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html. The clock outside of tensor cores, "H100":
    # https://glennklockwood.com/garden/processors/h100. Its 33.5 TFLOP/s of float64 are 132 · 64 · 2 · 1.98 GHz.
    "H100": Chip(3350, 1.98, 132, 64, 16),
}
OF_THE_PEAK = 0.9  # of the memory's bandwidth, for a kernel that only reads
LAUNCHES = 9.0  # µs: start and end of the first kernel, join, and a multiply that returns at once
WIDTHS = {"float32": 4, "bfloat16": 2}
# Conversions, and operations in float64, for each number: the first kernels had one of each. Now each of 256 threads
# has five of each in a chunk of 64 KB: 64 numbers of float32, 128 of bfloat16.
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
