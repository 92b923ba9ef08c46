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

# The gradients are cut into chunks of CHUNK bytes, and the programs take turns with them. A program's threads read STEP
# bytes of a chunk at once, in four loads of 16 bytes each, and have LANES sums between them, four for each. With four
# programs on a multiprocessor, 64 KB are on their way to it at any time, which keeps the memory busy. Four fit if no
# thread has more than 64 registers.
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
    """Where the gradients are: a row of addresses and a row of 4·length + kind, with a column for each chunk."""

    rows: Array
    chunks: int
    wide: bool  # whether there are float64 numbers among them, which other variants of the kernels take
    programs: int


# Which arrays, and where ----------------------------------------------------------------------------------------------


def table(arrays: Sequence[Array]) -> Table | None:
    """The table of these arrays; None if they are not of the kind that the kernels take."""
    device = arrays[0].get_device()  # an integer, which is compared faster than a torch.device
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


# Tables by device, stream and the arrays' places. A table says where to look and not what is there, so none is ever out
# of date: equal addresses, lengths and dtypes have an equal table, whoever owns the memory. Each stream has tables of
# its own. Another stream would not wait until a table is copied to the device, and PyTorch would not know that the
# table's memory is still in use there.
_TABLES: OrderedDict[tuple[Any, ...], Table | None] = OrderedDict()
_MOST = 16  # tables that are kept; one for 4 GB of gradients has 1 MB of device memory
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
            # From there it is copied without a wait, and PyTorch reuses that memory only after the copy.
            host = host.pin_memory()
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
    # Newer versions of Triton must be told that x·x + sum may become one operation.
    return {"num_warps": THREADS // warp, "enable_fp_fusion": True}


def _rows(places: Sequence[tuple[int, int, torch.dtype]]) -> tuple[np.ndarray, bool]:
    """The rows of a table, and whether there are float64 numbers.

    An array that does not begin at a multiple of 16 bytes has a short first chunk, up to the next multiple. All other
    chunks begin at one.
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
# At each replay a graph copies its table from the same pinned memory, which must therefore never be used again. While a
# graph is captured, pinned memory cannot be allocated and no kernel can be compiled. So calls outside of graphs, such
# as those of a warm-up, set memory aside. Where none is left, or a kernel has not run yet, PyTorch does the work.

_SPARE: list[Array] = []  # pinned memory that no graph has taken yet
_RUN: set[tuple[Any, ...]] = set()  # the variants of the kernels that have run


def _reserve(size: int) -> None:
    if not _SPARE or _SPARE[-1].nbytes < 2 * size:
        _SPARE[:] = [torch.empty(max(1 << 20, 8 * size), dtype=torch.uint8, device="cpu", pin_memory=True)]


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
    """A number as a float64 on this device. It is filled in there: a copy from the CPU would wait for the device."""
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
    mantissa.table = found  # type: ignore[attr-defined]  # which saves scale_ the search for it
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

    Most GPUs start only two float64 operations in a clock on each multiprocessor. One for every number would take
    longer than to read it. So the squares of 16- and 32-bit numbers are summed in float32 over a chunk, and only these
    sums are added in float64. On its way into such a sum a square is rounded at most 17 times: when it is computed, as
    the 15 later numbers of its place are added, and as places are joined. Each rounding is off by 2⁻²⁴ or less, and the
    root halves the error of the sum. With the rounding of the norm itself, the norm is off by less than
    17/2 · 2⁻²⁴ + 2⁻²⁴ = 5.7e-7. Gradients that are all alike come near that. The errors of others mostly cancel, and
    little more than the last rounding is left.

    Squares can be too large for float32, or too small. Then the chunk, which is still in the cache, is taken again, its
    numbers first multiplied by a power of two, which rounds nothing:

    - The sum is not finite: the numbers are multiplied by 2⁻⁷⁰. Then none is above 2⁵⁸, and no sum above 2¹²². Squares
      that are lost now are those of numbers below 2⁷, which do not count beside a sum above 2¹²⁷. Infinity and NaN stay
      what they are.
    - No chunk of this program so far has a sum of 2⁻⁶⁴ or more: the numbers, all below 2⁻³¹, are multiplied by 2⁹⁰.
      Then none is above 2⁵⁹, and even the smallest float32, 2⁻¹⁴⁹, has a square that is not lost. Once there is such a
      sum, lost squares do not count: they are below 2⁻¹²⁶, a chunk has 2¹⁵ of them at most, and 2²⁰ chunks lose 2⁻⁹¹.

    No square of a float16 is too large or too small. For squares of float64 numbers there is no wider type. They are
    summed as Blue (1978) does it: big and small numbers are scaled before they are squared.

    Which program takes which chunk, and the order of every sum, are fixed. So the norm is the same each time, bit for
    bit.
    """
    # With float64 numbers each place has three sums. Half as many places leave room for them in 64 registers.
    PLACES: tl.constexpr = LANES // 2 if WIDE else LANES
    program = tl.program_id(0)
    medium = tl.zeros([PLACES], tl.float64)
    big = tl.zeros([PLACES], tl.float64)
    small = tl.zeros([PLACES], tl.float64)
    largest = tl.full((), 0.0, tl.float32)  # sum of any chunk so far
    for chunk in range(program, chunks, programs):
        address = tl.load(rows + chunk)
        described = tl.load(rows + chunks + chunk)
        kind = described & 3
        n = (described >> 2).to(tl.int32)
        if WIDE & (kind == 3):
            big, medium, small = add_wide_squares(big, medium, small, address, n, PLACES, STEP // 8)
        else:
            squares = chunk_squares(address, n, kind, 1.0, PLACES, STEP)
            total = tl.sum(squares)
            largest = tl.where(total > largest, total, largest)
            fits = (total < float("inf")) & (largest >= 2.0**-64)
            unit = tl.full((), 1.0, tl.float32)
            if (kind > 0) & (fits == 0):
                unit = tl.where(total < 1, 2.0**-90, 2.0**70)
                squares = chunk_squares(address, n, kind, 1 / unit, PLACES, STEP)
            wide_unit = unit.to(tl.float64)
            medium += squares.to(tl.float64) * (wide_unit * wide_unit)
    tl.store(partials + program, tl.sum(medium))
    if WIDE:
        tl.store(partials + programs + program, tl.sum(big))
        tl.store(partials + 2 * programs + program, tl.sum(small))


@triton.jit
def chunk_squares(address, n, kind, scale, PLACES: tl.constexpr, STEP: tl.constexpr):
    if kind == 0:
        squares = add_squares(address, n, scale, tl.float16, PLACES, STEP // 2)
    elif kind == 1:
        squares = add_squares(address, n, scale, tl.bfloat16, PLACES, STEP // 2)
    else:
        squares = add_squares(address, n, scale, tl.float32, PLACES, STEP // 4)
    return squares


@triton.jit
def add_squares(address, n, scale, DTYPE: tl.constexpr, PLACES: tl.constexpr, STEP: tl.constexpr):
    ROW: tl.constexpr = STEP // 4  # numbers that all threads read with one load each
    row = tl.arange(0, ROW)
    sums = tl.zeros([ROW], tl.float32)
    start = address.to(tl.pointer_type(DTYPE))
    # Only a chunk that begins at a multiple of 16 bytes has whole steps. Told so, the compiler reads 16 bytes at once.
    aligned = tl.multiple_of(start, 16)
    whole = n // STEP * STEP
    for begin in range(0, whole, STEP):
        for part in tl.static_range(STEP // ROW):
            x = tl.load(aligned + begin + part * ROW + row).to(tl.float32) * scale
            sums += x * x
    for begin in range(whole, n, ROW):
        x = tl.load(start + begin + row, begin + row < n, 0.0).to(tl.float32) * scale
        sums += x * x
    return tl.sum(tl.reshape(sums, [PLACES, ROW // PLACES]), 1)  # of neighbours, which one thread has


@triton.jit
def add_wide_squares(big, medium, small, address, n, PLACES: tl.constexpr, STEP: tl.constexpr):
    row = tl.arange(0, PLACES)
    start = address.to(tl.pointer_type(tl.float64))
    aligned = tl.multiple_of(start, 16)
    whole = n // STEP * STEP
    for begin in range(0, whole, STEP):
        for part in tl.static_range(STEP // PLACES):
            big, medium, small = add_by_size(big, medium, small, tl.load(aligned + begin + part * PLACES + row))
    for begin in range(whole, n, PLACES):
        x = tl.load(start + begin + row, begin + row < n, 0.0)
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
    """The norm as mantissa · scale: that of float64 numbers is known even where it does not fit float64 itself."""
    at = tl.arange(0, BLOCK)
    squares = tl.sum(tl.load(partials + at, at < programs, 0.0))
    unit = tl.full((), 1.0, tl.float64)
    if WIDE:
        big = tl.sum(tl.load(partials + programs + at, at < programs, 0.0))
        small = tl.sum(tl.load(partials + 2 * programs + at, at < programs, 0.0))
        # Small numbers do not count beside big ones, nor where the squares of medium ones sum to 2⁻⁹⁰⁰ or more.
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
    threshold,  # where max_norm is, if only the device knows it
    policy,
    WIDE: tl.constexpr,
    STEP: tl.constexpr,
):
    """Clips by the rules of the contract. Each program computes the factor: a launch for that would take longer."""
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
    if s != 1:  # a division in float64 is slow
        ratio = ratio / s
    first = tl.where(finite & (c >= 0), ratio, float("nan"))
    second = tl.full((), 1.0, tl.float64)
    # A factor below the normal numbers of float32 would lose digits. Its root does not: multiply by that twice.
    if (first < 2.0**-126) & (c > 0):
        first = tl.sqrt(c / m) / tl.sqrt(s)
        second = first
    # The last chunks first: they were read last for the norm, and may still be in the cache.
    for turn in range(tl.program_id(0), chunks, programs):
        chunk = chunks - 1 - turn
        address = tl.load(rows + chunk)
        described = tl.load(rows + chunks + chunk)
        kind = described & 3
        length = (described >> 2).to(tl.int32)
        if kind == 0:
            multiply_chunk(address, length, first, second, zero, tl.float16, tl.float32, STEP // 2)
        elif kind == 1:
            multiply_chunk(address, length, first, second, zero, tl.bfloat16, tl.float32, STEP // 2)
        elif kind == 2:
            multiply_chunk(address, length, first, second, zero, tl.float32, tl.float32, STEP // 4)
        elif WIDE:
            multiply_chunk(address, length, first, second, zero, tl.float64, tl.float64, STEP // 8)


@triton.jit
def multiply_chunk(address, n, first, second, zero, DTYPE: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr):
    """Half precision is multiplied in float32, and rounded once."""
    ROW: tl.constexpr = STEP // 4
    step = tl.arange(0, STEP)
    row = tl.arange(0, ROW)
    start = address.to(tl.pointer_type(DTYPE))
    whole = n // STEP * STEP
    # Where there is a whole step, the minimum is STEP. Were it a constant, ptxas would unroll the loop for float64 and
    # could run out of registers: that of CUDA 12.9 does for sm_80.
    for begin in range(0, whole, tl.minimum(n, STEP)):
        place = tl.multiple_of(start + begin, 16) + step
        x = tl.load(place).to(WIDE) * first.to(WIDE) * second.to(WIDE)
        tl.store(place, tl.where(zero, 0.0, x).to(DTYPE))
    for begin in range(whole, n, ROW):
        mask = begin + row < n
        x = tl.load(start + begin + row, mask, 0.0).to(WIDE) * first.to(WIDE) * second.to(WIDE)
        tl.store(start + begin + row, tl.where(zero, 0.0, x).to(DTYPE), mask)
