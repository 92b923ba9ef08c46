"""CUDA and ROCm: the 2-norm of any number of arrays, and their scaling in place, in three launches and without a wait.

`sum_squares` reads every gradient once, `join` makes a norm of what it has found, and `multiply` reads that norm on the
device and returns at once, without a look at any gradient, where it calls for no clipping. What cannot be done here,
`backends.torch` does with PyTorch's own operations.
"""

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

# A program has THREADS threads and adds in LANES places, four for each thread. It has STEP bytes on their way to it at
# a time: four times 16 for each thread. Four such programs fill a multiprocessor, and 64 KB on their way keep its
# memory busy. They take turns with the chunks that the gradients are cut into, CHUNK bytes each.
THREADS = 256
LANES = 1024
STEP = 16384
CHUNK = 65536
PROGRAMS = 4  # on each multiprocessor

ALIGNED = 16  # bytes that one thread reads at once, at an address that is a multiple of them
KINDS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
POLICIES = {"nan": 0, "raise": 0, "zero": 1, "keep": 2}  # "raise" has raised already, where it had to
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}

Array = Any  # torch.Tensor


class Table(NamedTuple):
    """Where the gradients are, in device memory: a row of addresses, and one of 4·length + kind, for each chunk."""

    rows: Array
    chunks: int
    wide: bool  # whether there are float64 numbers among them: other variants of the kernels take those
    programs: int


# Which arrays, and where ----------------------------------------------------------------------------------------------


def table(arrays: Sequence[Array]) -> Table | None:
    """The table of these arrays; None if they are not of the kind that the kernels take."""
    device = arrays[0].get_device()  # a number, which is compared sooner than a device
    places = []
    for a in arrays:
        if type(a) not in _PLAIN or a.get_device() != device or not (a.is_contiguous() or _is_dense(a)):
            return None
        places.append((a.data_ptr(), a.numel(), a.dtype))
    return _table(tuple(places), arrays[0].device)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _is_dense(x: Array) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order."""
    expected = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length > 1:
            if stride != expected:
                return False
            expected *= length
    return True


# Tables by device, stream and the arrays' places. A table says where to look and not what is there. So none is ever out
# of date: equal addresses, lengths and dtypes have an equal table, whoever owns the memory. It belongs to one stream,
# for another would not wait until it is copied to the device, nor keep its memory from others until it is used.
_TABLES: OrderedDict[tuple[Any, ...], Table | None] = OrderedDict()
_MOST = 16  # tables that are kept: 2 MB of device memory for each 4 GB of gradients
_CAPTURED: list[Any] = []  # what CUDA graphs read at each replay, for good


def _table(places: tuple[tuple[int, int, torch.dtype], ...], device: torch.device) -> Table | None:
    if _capturing(device):
        return _captured_table(places, device)
    stream = torch.cuda.current_stream(device).cuda_stream if _is_gpu(device) else 0
    key = (device, stream, places)
    if key in _TABLES:
        _TABLES.move_to_end(key)
    else:
        rows, wide = _rows(places)
        host = torch.from_numpy(rows)
        if _is_gpu(device):
            _reserve(rows.nbytes)
            host = host.pin_memory()  # from there the copy does not wait; PyTorch reuses that memory only after it
        _TABLES[key] = _described(host.to(device, non_blocking=True), wide)
        if len(_TABLES) > _MOST:
            _TABLES.popitem(last=False)
    return _TABLES[key]


def _described(rows: Array, wide: bool) -> Table | None:
    chunks = rows.shape[1]
    return Table(rows, chunks, wide, min(chunks, _programs(rows.device))) if chunks else None


def _is_gpu(device: torch.device) -> bool:
    """Triton's interpreter runs the kernels on the CPU. PyTorch calls AMD's GPUs "cuda" too."""
    return device.type == "cuda"


@functools.cache
def _programs(device: torch.device) -> int:
    if not _is_gpu(device):
        return 3  # enough to take turns
    return PROGRAMS * int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _options(device: torch.device) -> dict[str, Any]:
    """How a kernel is compiled: a warp has 32 threads, or 64 on AMD's data-centre GPUs."""
    warp = torch.cuda.get_device_properties(device).warp_size if _is_gpu(device) else 32
    # Newer versions of Triton ask to be told whether x·x + sum may become one operation.
    return {"num_warps": THREADS // warp, "enable_fp_fusion": True}


def _rows(places: Sequence[tuple[int, int, torch.dtype]]) -> tuple[np.ndarray, bool]:
    """The rows of a table, and whether there are float64 numbers.

    Behind its first chunk, which ends at a multiple of 16 bytes, every chunk of an array begins at one.
    """
    wide = any(REAL.get(dtype, dtype) == torch.float64 for _, _, dtype in places)
    places = [place for place in places if place[1]]
    start = np.array([address for address, _, _ in places], np.int64)
    kind = np.array([KINDS[REAL.get(dtype, dtype)] for _, _, dtype in places], np.int64)
    complex_parts = np.array([1 + (dtype in REAL) for _, _, dtype in places], np.int64)
    bytes_each = np.array([2, 2, 4, 8], np.int64)[kind]
    length = bytes_each * complex_parts * np.array([n for _, n, _ in places], np.int64)
    first = np.minimum(-start % ALIGNED, length)  # bytes before the first multiple; 0 for most
    later = -(-(length - first) // CHUNK)
    counts = (first > 0) + later
    array = np.repeat(np.arange(len(places)), counts)
    number = np.arange(len(array)) - np.repeat(np.cumsum(counts) - counts, counts)  # of the chunk in its array
    number -= first[array] > 0  # −1: the chunk before the first multiple
    begin = np.where(number < 0, 0, first[array] + number * CHUNK)
    end = np.where(number < 0, first[array], np.minimum(begin + CHUNK, length[array]))
    rows = np.stack([start[array] + begin, (end - begin) // bytes_each[array] * 4 + kind[array]])
    return rows, wide


# CUDA graphs ----------------------------------------------------------------------------------------------------------
# At each replay a graph copies its table from the same pinned memory, which therefore is its own for good. While it is
# captured, no such memory can be asked for, and no kernel be compiled. So calls outside of graphs, such as those of a
# warm-up, set memory aside. Where none is left, or a kernel has not run yet, PyTorch's operations do the work.

_SPARE: list[Array] = []  # pinned memory that no graph has taken yet
_RUN: set[tuple[Any, ...]] = set()  # the variants of the kernels that have run


def _reserve(size: int) -> None:
    if not _SPARE or _SPARE[-1].nbytes < 2 * size:
        _SPARE[:] = [torch.empty(max(1 << 20, 8 * size), dtype=torch.uint8, pin_memory=True)]


def _captured_table(places: Sequence[tuple[int, int, torch.dtype]], device: torch.device) -> Table | None:
    rows, wide = _rows(places)
    if not _SPARE or _SPARE[-1].nbytes < rows.nbytes:
        return None
    host = _SPARE[-1][: rows.nbytes].view(torch.int64).view(rows.shape)
    _SPARE[-1] = _SPARE[-1][-(-rows.nbytes // 64) * 64 :]
    host.copy_(torch.from_numpy(rows))
    on_device = host.to(device, non_blocking=True)
    _CAPTURED.append(host)
    return _described(on_device, wide)


def _may_launch(device: torch.device, *variant: Any) -> bool:
    """Whether a variant of a kernel can be launched now; it is taken to run from now on."""
    if _capturing(device):
        return (device, *variant) in _RUN
    _RUN.add((device, *variant))
    return True


def _capturing(device: torch.device) -> bool:
    return _is_gpu(device) and torch.cuda.is_current_stream_capturing()


def _current(device: torch.device) -> Any:
    """A launch goes to the current device."""
    return torch.cuda.device(device) if _is_gpu(device) else contextlib.nullcontext()


def _on(device: torch.device, x: Any) -> Array:
    """A number as a float64 of this device; filling makes it wait for no one, copying from the CPU would."""
    if isinstance(x, torch.Tensor) and (x.device == device or not x.is_cpu):
        return x.to(device, torch.float64)
    return torch.full((), float(x), dtype=torch.float64, device=device)


# The norm -------------------------------------------------------------------------------------------------------------


def measure(arrays: Sequence[Array]) -> tuple[Array, Array, Array] | None:
    """The norm as it is returned, its mantissa and its scale; None where PyTorch must measure."""
    found = table(arrays)
    if found is None or not _may_launch(arrays[0].device, found.wide):
        return None
    device = arrays[0].device
    partials = torch.empty((3, found.programs), dtype=torch.float64, device=device)
    value = torch.empty((), dtype=torch.float64 if found.wide else torch.float32, device=device)
    mantissa, scale = (torch.empty((), dtype=torch.float64, device=device) for _ in range(2))
    mantissa.table = found  # type: ignore[attr-defined]  # for scale_, which is to find it sooner
    with _current(device):
        sum_squares[(found.programs,)](
            found.rows, found.chunks, partials, found.programs, found.wide, LANES, STEP, **_options(device)
        )
        block = triton.next_power_of_2(_programs(device))
        join[(1,)](partials, found.programs, value, mantissa, scale, found.wide, block, **_options(device))
    return value, mantissa, scale


@triton.jit(do_not_specialize=["chunks", "programs"])
def sum_squares(rows, chunks, partials, programs, WIDE: tl.constexpr, LANES: tl.constexpr, STEP: tl.constexpr):
    """Each program's share of the squares, summed in three parts: those of big, of medium and of small numbers.

    Most GPUs start two float64 operations in a clock, and so can spend one on some numbers only. Squares of 16 and 32
    bits are therefore summed in float32 over a chunk, at most 17 of them in a place, and only those sums in float64. A
    sum of k positive numbers in float32 is off by k roundings at most, each by 2⁻²⁴ or less, and the norm, its root, by
    half of that: 17/2 · 2⁻²⁴ and the rounding of the norm itself are 5.7e-7. Gradients that are all alike come near it;
    of others, some sums are too large and some too small, and what is left is as good as the rounding alone.

    Squares can be too large for float32, or too small. Then the chunk, which is in the cache still, is taken again, its
    numbers first multiplied by a power of two, which rounds nothing:

    - Some sum is not finite. Times 2⁻⁷⁰, no number is above 2⁵⁸ nor a sum above 2¹²¹. What vanishes now is below 2⁷,
      beside a sum that was above 2¹²⁷. Infinity and NaN stay what they are.
    - A square below 2⁻¹²⁶ may be lost, so a chunk, which has up to 2¹⁵ of them, may lose 2⁻¹¹¹. Where a chunk of this
      program, be it an earlier one, has a sum of 2⁻⁶⁴, that is nothing: not in 2²⁰ chunks. Before, every number is
      below 2⁻³¹. Times 2⁹⁰ it is below 2⁵⁹, and even the smallest float32, 2⁻¹⁴⁹, has a square that is not lost.

    No square of a float16 is too large or too small. Those of float64 have no wider type. They are summed as Blue
    (1978) does it, the big and the small ones scaled before they are squared.

    Which program takes which chunk, and the order of every sum, are fixed. So the norm is the same, bit for bit, each
    time.
    """
    program = tl.program_id(0)
    medium = tl.zeros([LANES], tl.float64)
    big = tl.zeros([LANES], tl.float64)
    small = tl.zeros([LANES], tl.float64)
    largest = tl.full((), 0.0, tl.float32)  # sum of any chunk so far
    for chunk in range(program, chunks, programs):
        address = tl.load(rows + chunk)
        described = tl.load(rows + chunks + chunk)
        kind = described & 3
        n = (described >> 2).to(tl.int32)
        if WIDE & (kind == 3):
            big, medium, small = add_wide_squares(big, medium, small, address, n, LANES, STEP // 8)
        else:
            squares = chunk_squares(address, n, kind, 1.0, LANES, STEP)
            total = tl.sum(squares)
            largest = tl.where(total > largest, total, largest)
            unit = tl.full((), 1.0, tl.float32)
            if (kind > 0) & ((total < float("inf")) & (largest >= 2.0**-64) == 0):
                unit = tl.where(total < 1, 2.0**-90, 2.0**70)
                squares = chunk_squares(address, n, kind, 1 / unit, LANES, STEP)
            wide_unit = unit.to(tl.float64)
            medium += squares.to(tl.float64) * (wide_unit * wide_unit)
    tl.store(partials + program, tl.sum(medium))
    if WIDE:
        tl.store(partials + programs + program, tl.sum(big))
        tl.store(partials + 2 * programs + program, tl.sum(small))


@triton.jit
def chunk_squares(address, n, kind, scale, LANES: tl.constexpr, STEP: tl.constexpr):
    if kind == 0:
        squares = add_squares(address, n, scale, tl.float16, LANES, 2 * LANES, STEP // 2)
    elif kind == 1:
        squares = add_squares(address, n, scale, tl.bfloat16, LANES, 2 * LANES, STEP // 2)
    else:
        squares = add_squares(address, n, scale, tl.float32, LANES, LANES, STEP // 4)
    return squares


@triton.jit
def add_squares(address, n, scale, DTYPE: tl.constexpr, LANES: tl.constexpr, ROW: tl.constexpr, STEP: tl.constexpr):
    """A row is what all threads read at once, 16 bytes each: four numbers for a thread, or eight of half precision."""
    row = tl.arange(0, ROW)
    sums = tl.zeros([ROW], tl.float32)
    start = address.to(tl.pointer_type(DTYPE))
    # Only a chunk that begins at a multiple of 16 bytes has a whole step. What is said of these pointers alone lets
    # each thread read 16 bytes at once, for the mask of the others forbids it.
    aligned = tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
    whole = n // STEP * STEP
    for begin in range(0, whole, STEP):
        for part in tl.static_range(STEP // ROW):
            x = tl.load(aligned + begin + part * ROW + row).to(tl.float32) * scale
            sums += x * x
    for begin in range(whole, n, ROW):
        x = tl.load(start + begin + row, begin + row < n, 0.0).to(tl.float32) * scale
        sums += x * x
    return tl.sum(tl.reshape(sums, [LANES, ROW // LANES]), 1)  # neighbours, which one thread has


@triton.jit
def add_wide_squares(big, medium, small, address, n, LANES: tl.constexpr, STEP: tl.constexpr):
    lanes = tl.arange(0, LANES)
    start = address.to(tl.pointer_type(tl.float64))
    aligned = tl.multiple_of(address.to(tl.pointer_type(tl.float64)), 16)
    whole = n // STEP * STEP
    for begin in range(0, whole, STEP):
        for part in tl.static_range(STEP // LANES):
            big, medium, small = add_by_size(big, medium, small, tl.load(aligned + begin + part * LANES + lanes))
    for begin in range(whole, n, LANES):
        x = tl.load(start + begin + lanes, begin + lanes < n, 0.0)
        big, medium, small = add_by_size(big, medium, small, x)
    return big, medium, small


@triton.jit
def add_by_size(big, medium, small, x):
    is_big = tl.abs(x) > 2.0**486
    is_small = tl.abs(x) < 2.0**-511
    scaled = x * tl.where(is_big, 2.0**-538, tl.where(is_small, 2.0**537, 1.0))
    square = scaled * scaled
    big += tl.where(is_big, square, 0.0)
    small += tl.where(is_small, square, 0.0)
    medium += tl.where(is_big | is_small, 0.0, square)  # NaN is neither
    return big, medium, small


@triton.jit(do_not_specialize=["programs"])
def join(partials, programs, value, mantissa, scale, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The norm, as mantissa·scale: of float64 numbers it may fit that type though no square of them does."""
    at = tl.arange(0, BLOCK)
    squares = tl.sum(tl.load(partials + at, at < programs, 0.0))
    unit = tl.full((), 1.0, tl.float64)
    if WIDE:
        big = tl.sum(tl.load(partials + programs + at, at < programs, 0.0))
        small = tl.sum(tl.load(partials + 2 * programs + at, at < programs, 0.0))
        # Squares of small numbers do not count beside those of big ones, nor beside a sum of medium ones that is large.
        if big > 0:
            squares = big + squares * 2.0**-538 * 2.0**-538
            unit = tl.full((), 2.0**538, tl.float64)
        elif squares < 2.0**-900:
            squares = small + squares * 2.0**537 * 2.0**537
            unit = tl.full((), 2.0**-537, tl.float64)
    root = tl.sqrt(squares)
    tl.store(mantissa, root)
    tl.store(scale, unit)
    tl.store(value, (root * unit).to(value.dtype.element_ty))


# Clipping by a norm ---------------------------------------------------------------------------------------------------


def scale_(arrays: Sequence[Array], norm: Any, max_norm: Any, nonfinite: str) -> bool:
    """Clips the arrays in place, given their norm on the same device; False where PyTorch must."""
    device = arrays[0].device
    threshold = None
    if isinstance(max_norm, torch.Tensor) and not max_norm.is_cpu:
        threshold, max_norm = max_norm.to(device, torch.float64), 0.0
    found = getattr(norm.mantissa, "table", None) or table(arrays)
    if found is None or not _may_launch(device, found.wide, norm.value.dtype, threshold is None):
        return False
    with _current(device):
        multiply[(found.programs,)](
            found.rows,
            found.chunks,
            found.programs,
            norm.value,
            _on(device, norm.mantissa),
            _on(device, norm.scale),
            float(max_norm),
            threshold,
            POLICIES[nonfinite],
            found.wide,
            LANES,
            STEP,
            **_options(device),
        )
    torch.autograd.graph.increment_version(arrays)
    return True


@triton.jit(
    do_not_specialize=["chunks", "programs", "policy"],
    do_not_specialize_on_alignment=["value", "mantissa", "scale", "threshold"],
)
def multiply(
    rows,
    chunks,
    programs,
    value,
    mantissa,
    scale,
    max_norm: tl.float64,  # else Triton would round it to float32
    threshold,  # where max_norm is, if the device alone knows it
    policy,
    WIDE: tl.constexpr,
    LANES: tl.constexpr,
    STEP: tl.constexpr,
):
    """Clips by the rules of the contract. Every program works out the factor: that takes less time than a launch."""
    n = tl.load(value)
    c = tl.full((), max_norm, tl.float64)
    if threshold is not None:
        c = tl.load(threshold)
    if (n <= c.to(n.dtype)) | (c == float("inf")):
        return
    m = tl.load(mantissa)
    s = tl.load(scale)
    finite = tl.abs(m) < float("inf")
    if (finite == 0) & (policy == 2):
        return
    zero = (finite == 0) & (policy == 1)
    ratio = c / m
    if s != 1:  # a division in float64 takes long
        ratio = ratio / s
    first = tl.where(finite & (c >= 0), ratio, float("nan"))
    second = tl.full((), 1.0, tl.float64)
    # Too small for a float32: multiply twice by its root, each time by a normal number.
    if (first < 2.0**-126) & (c > 0):
        first = tl.sqrt(c / m) / tl.sqrt(s)
        second = first
    # The last chunks first: of what the norm was taken of, they are still in the cache.
    for turn in range(tl.program_id(0), chunks, programs):
        chunk = chunks - 1 - turn
        address = tl.load(rows + chunk)
        described = tl.load(rows + chunks + chunk)
        kind = described & 3
        length = (described >> 2).to(tl.int32)
        if kind == 0:
            multiply_chunk(address, length, first, second, zero, tl.float16, tl.float32, 2 * LANES, STEP // 2)
        elif kind == 1:
            multiply_chunk(address, length, first, second, zero, tl.bfloat16, tl.float32, 2 * LANES, STEP // 2)
        elif kind == 2:
            multiply_chunk(address, length, first, second, zero, tl.float32, tl.float32, LANES, STEP // 4)
        elif WIDE:
            multiply_chunk(address, length, first, second, zero, tl.float64, tl.float64, LANES, STEP // 8)


@triton.jit
def multiply_chunk(
    address, n, first, second, zero, DTYPE: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr, STEP: tl.constexpr
):
    """Half precision is multiplied in float32, and rounded once."""
    steps = tl.arange(0, STEP)
    lanes = tl.arange(0, LANES)
    start = address.to(tl.pointer_type(DTYPE))
    aligned = tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
    whole = n // STEP * STEP
    for begin in range(0, whole, STEP):
        x = tl.load(aligned + begin + steps).to(WIDE) * first.to(WIDE) * second.to(WIDE)
        tl.store(aligned + begin + steps, tl.where(zero, 0.0, x).to(DTYPE))
    for begin in range(whole, n, LANES):
        mask = begin + lanes < n
        x = tl.load(start + begin + lanes, mask, 0.0).to(WIDE) * first.to(WIDE) * second.to(WIDE)
        tl.store(start + begin + lanes, tl.where(zero, 0.0, x).to(DTYPE), mask)
