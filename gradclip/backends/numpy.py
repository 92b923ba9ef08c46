"""NumPy: everything is on the host, so a plain ``if`` decides whether anything is written at all."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..memory import Layout
from . import TINY, Norm

NAME = "NumPy"
BLOCK = 1024  # elements whose squares are summed in their own precision; blocks are joined in float64
CHUNK = 1 << 16  # elements handled at a time: they stay in the cache from one operation to the next
MAX = float(np.finfo(np.float64).max)
UNIT_AXIS = -1  # of a weight of shape (…, in, out)

Array = Any  # a NumPy array or scalar of one of the dtypes that rules.py takes


# What rules.py asks about an array ------------------------------------------------------------------------------------


def is_array(x: object) -> bool:
    """Other subclasses than np.memmap add something to an array, such as a mask or a unit, which we do not know."""
    return type(x) in (np.ndarray, np.memmap) or isinstance(x, np.generic)


@functools.cache
def dtype_name(dtype: Any) -> str:
    return str(dtype.name)


def host_value(x: Array) -> float | None:
    """The least element of an array where the host can read it without waiting, else None."""
    return float(x.min()) if x.size else None


def is_traced(arrays: Sequence[Array]) -> bool:
    return False


def not_writable(arrays: Sequence[Array]) -> tuple[int, str] | None:
    """The position of the first array that cannot be written to, and why."""
    for i, x in enumerate(arrays):
        if not isinstance(x, np.ndarray):
            return i, "is a NumPy scalar, which nothing can be written to"
        if not x.flags.writeable:
            return i, "is read-only"
        if not x.flags.forc and layout(x).overlaps_itself():
            return i, "is broadcast: several of its elements share one place in memory"
    return None


def apart(arrays: Sequence[Array]) -> bool:
    """Whether a quick look tells that no two arrays share memory: each has memory that NumPy got for it alone."""
    owners = [a if a.base is None else a.base for a in arrays]
    return len({id(o) for o in owners}) == len(owners) and all(type(o) is np.ndarray and o.base is None for o in owners)


def layout(x: Array) -> Layout:
    return Layout(x.__array_interface__["data"][0], x.dtype, x.itemsize, x.shape, x.strides)


def is_negated(x: Array) -> bool:
    """Whether x is lazily negated: what lies in memory is -x."""
    return False


def constant(x: Array) -> Array:
    """x, without a derivative."""
    return x


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return np.reshape(x, shape)


writing = nullcontext  # the context in which rules.py writes in place


def all_finite(x: Array) -> bool:
    return bool(np.isfinite(x).all())


def is_sparse(x: Array) -> bool:
    return False


# The norm -------------------------------------------------------------------------------------------------------------


def measure(arrays: Sequence[Array], ord: float) -> Norm:
    """The norm of all arrays joined."""
    if ord == 2:
        squares, lost = 0.0, 0.0
        for dtype, group in _by_dtype(arrays).items():
            parts = [p for a in group for p in _parts(a)]
            size = sum(p.size for p in parts)
            squares += _sum_squares(parts, _accumulator(dtype))
            # A square below the smallest normal number may be lost; the sum must be so large that it would not count.
            lost += size * (2.0**-1022 if _is_wide(dtype) else TINY)
        if lost * 2**22 <= squares < math.inf:
            return _norm(arrays, math.sqrt(squares), 1.0)
    with np.errstate(all="ignore"):
        peak = _peak(arrays)
        if not 0 < peak < math.inf:
            return _norm(arrays, peak, 1.0)
        if ord == math.inf:
            return _norm(arrays, max(float(m.max()) for m in _moduli(arrays, peak)), peak)
        powers = sum(float((m**ord).sum()) for m in _moduli(arrays, peak))
        return _norm(arrays, min(float(np.float64(powers) ** (1 / ord)), MAX), peak)


def given(norm: Any, arrays: Sequence[Array]) -> Norm:
    """A norm that the caller has measured."""
    return _norm(arrays, float(norm), 1.0)


def measure_each(arrays: Sequence[Array], ord: float, axes: Sequence[tuple[int, ...] | None]) -> list[Norm]:
    """Of each array its own norm or, along its axes, the norms of its slices."""
    return [
        measure([a], ord) if axis is None else slice_norms(a, ord, axis) for a, axis in zip(arrays, axes, strict=True)
    ]


def join(norms: Sequence[Norm], ord: float) -> Norm:
    """The norms of vectors that were measured in parts, from the norms of the parts."""
    mantissa, scale = (np.stack(column) for column in list(zip(*norms, strict=True))[1:])
    with np.errstate(all="ignore"):
        largest = np.where(mantissa > 0, scale, 0.0).max(0)
        largest = np.where(largest > 0, largest, 1.0)
        parts = mantissa * (scale / largest)
        joined = parts.max(0) if ord == math.inf else (parts**ord).sum(0) ** (1 / ord)
        joined = np.where(np.isfinite(mantissa).all(0), np.minimum(joined, MAX), joined)
        value = (joined * largest).astype(np.result_type(*(n.value for n in norms)))
    return Norm(value, joined, largest)


def _norm(arrays: Sequence[Array], mantissa: float, scale: float) -> Norm:
    wide = any(_is_wide(a.dtype) for a in arrays)
    return Norm(_as(np.float64 if wide else np.float32, mantissa * scale), mantissa, scale)


def _by_dtype(arrays: Sequence[Array]) -> dict[Any, list[Array]]:
    groups: dict[Any, list[Array]] = {}
    for a in arrays:
        groups.setdefault(a.dtype, []).append(a)
    return groups


def _is_wide(dtype: Any) -> bool:
    """Whether its numbers are of double precision, in whichever order their bytes are."""
    return dtype_name(dtype) in ("float64", "complex128")


def _accumulator(dtype: Any) -> Any:
    """The dtype of the norm of arrays of this dtype."""
    return np.float64 if _is_wide(dtype) else np.float32


def _parts(x: Array) -> tuple[Array, ...]:
    """x itself if it is real, else its real and its imaginary part."""
    return (x.real, x.imag) if x.dtype.kind == "c" else (x,)


def _sum_squares(arrays: Sequence[Array], dtype: Any) -> float:
    with np.errstate(all="ignore"):
        return sum(_sum_of_squares(batch) for batch in _batches(arrays, dtype))


def _batches(arrays: Iterable[Array], dtype: Any) -> Iterator[Array]:
    """All elements as flat arrays of one dtype: small arrays joined, others cut where they must be cast or gathered."""
    small: list[Array] = []
    size = 0
    for a in arrays:
        if a.size < CHUNK:
            small.append(a)
            size += a.size
            if size >= CHUNK:
                yield np.concatenate(small, axis=None, dtype=dtype)
                small, size = [], 0
        elif a.flags.c_contiguous and a.dtype == dtype:
            yield a.reshape(-1)
        else:
            flags = ("external_loop", "buffered")
            yield from np.nditer(a, flags, op_dtypes=[dtype], casting="same_kind", order="K", buffersize=CHUNK)  # type: ignore[call-overload]
    if small:
        yield np.concatenate(small, axis=None, dtype=dtype)


def _sum_of_squares(flat: Array) -> float:
    whole = flat.size - flat.size % BLOCK
    blocks, rest = flat[:whole].reshape(-1, BLOCK), flat[whole:]
    return float(np.vecdot(blocks, blocks).sum(dtype=np.float64)) + float(np.dot(rest, rest))


def _peak(arrays: Iterable[Array]) -> float:
    """The largest absolute value of a real or imaginary part; NaN if there is a NaN."""
    parts = (p for a in arrays for p in _parts(a) if p.size)
    return abs(float(np.max([np.maximum(p.max(), -p.min()) for p in parts], initial=0.0)))


def _moduli(arrays: Sequence[Array], peak: float) -> Iterator[Array]:
    """Absolute values divided by their peak: no power of them overflows."""
    for a in arrays:
        if not a.size:
            continue
        for batch in _batches([a], np.complex128 if a.dtype.kind == "c" else np.float64):
            yield _scaled_moduli(batch, peak)


def _scaled_moduli(x: Array, scale: Any) -> Array:
    """|x| / scale. To divide complex numbers, NumPy takes the reciprocal, and that of a subnormal scale is infinite."""
    parts = [p / scale for p in _parts(x)]
    return np.abs(parts[0]) if len(parts) == 1 else np.hypot(*parts)


def slice_norms(x: Array, ord: float, axis: tuple[int, ...]) -> Norm:
    """The norms of the slices of x along axis, whose lengths become 1."""
    shape = tuple(1 if i in axis else n for i, n in enumerate(x.shape))
    mantissa, scale = np.zeros(shape), np.ones(shape)
    with np.errstate(all="ignore"):
        for slab in _slabs(x.shape, axis):
            wide = x[slab].astype(np.complex128 if x.dtype.kind == "c" else np.float64)
            peak = np.max([np.abs(p).max(axis, keepdims=True, initial=0.0) for p in _parts(wide)], axis=0)
            finite = np.isfinite(peak)
            scale[slab] = np.where(finite & (peak > 0), peak, 1.0)
            moduli = _scaled_moduli(wide, scale[slab])
            if ord == math.inf:
                norm = moduli.max(axis, keepdims=True, initial=0.0)
            else:
                norm = (moduli**ord).sum(axis, keepdims=True) ** (1 / ord)
            mantissa[slab] = np.where(finite, np.minimum(norm, MAX), peak)
        return Norm((mantissa * scale).astype(_accumulator(x.dtype)), mantissa, scale)


def _slabs(shape: tuple[int, ...], axis: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Indices that cut an array across its longest kept axis, so that little of it is widened at a time."""
    kept = [i for i in range(len(shape)) if i not in axis]
    if not kept:
        yield ()
        return
    longest = max(kept, key=lambda i: shape[i])
    step = max(1, CHUNK * shape[longest] // max(1, math.prod(shape)))
    for start in range(0, shape[longest], step):
        yield (slice(None),) * longest + (slice(start, start + step),)


def unit_limits(norms: Sequence[Norm], clip_factor: Any, eps: Any) -> list[Norm]:
    """The limits r·max(‖W‖, eps) on the gradients of units, given the norms of the units' weights W."""
    clip_factor, eps = (np.asarray(x, np.float64) for x in (clip_factor, eps))
    limits = []
    with np.errstate(all="ignore"):
        for _, mantissa, scale in norms:
            small = mantissa * scale <= eps
            mantissa, scale = np.where(small, eps, mantissa) * clip_factor, np.where(small, 1.0, scale)
            limits.append(Norm(mantissa * scale, mantissa, scale))
    return limits


# Clipping by a norm ---------------------------------------------------------------------------------------------------


def scale(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> list[Array]:
    """The arrays clipped to max_norm, given their norm."""
    return _new(arrays, _scale, norm, max_norm, nonfinite)


def scale_(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> None:
    """The same in place. Where nothing is clipped, nothing is written."""
    _scale(arrays, arrays, norm, max_norm, nonfinite)


def scale_each(arrays: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any]) -> list[Array]:
    """The arrays, or their slices, each clipped to its own limit, given their norms."""
    return _new(arrays, _scale_each, norms, limits)


def scale_each_(arrays: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any]) -> None:
    """The same in place. Where nothing is clipped, nothing is written."""
    _scale_each(arrays, arrays, norms, limits)


def _new(arrays: Sequence[Array], clip: Callable[..., None], *arguments: Any) -> list[Array]:
    """New arrays, which what is clipped is written to."""
    out = [np.empty_like(a) for a in arrays]
    clip(arrays, out, *arguments)
    return out


def _scale(arrays: Sequence[Array], out: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> None:
    factors = _factors(norm, max_norm)
    if math.isnan(factors[0]) and nonfinite == "keep":
        factors = np.ones(()), np.ones(())
    elif math.isnan(factors[0]) and nonfinite == "zero":
        for o in out:
            o[...] = 0.0
        return
    _multiply(arrays, out, [factors] * len(arrays))


def _scale_each(arrays: Sequence[Array], out: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any]) -> None:
    _multiply(arrays, out, [_factors(norm, limit) for norm, limit in zip(norms, limits, strict=True)])


def _factors(norm: Norm, limit: Any) -> tuple[Any, Any]:
    """The clipping rule: what to multiply by. There are two factors, since c/n may be too small for one float64."""
    limit = limit if isinstance(limit, Norm) else Norm(limit, limit, 1.0)
    c = Norm(*(np.asarray(x, np.float64) for x in limit))
    with np.errstate(all="ignore"):
        # With the exponents apart, nothing in between is too large or too small, where c and n are both near an end.
        (numerator, up), (denominator, down) = _split(c), _split(norm)
        quotient, exponent = numerator / denominator, up - down
        ratio = np.ldexp(quotient, exponent)
        below = norm.value <= c.value.astype(norm.value.dtype)
        kept = np.where(np.isinf(norm.value), ratio >= 1, below) | (c.mantissa == math.inf)
        factor = np.where(kept, 1.0, np.where(np.isfinite(norm.mantissa), ratio, math.nan))
        tiny = (factor < 2.0**-1022) & (quotient > 0)
        half = exponent // 2
        first, second = np.ldexp(quotient, half), np.ldexp(1.0, exponent - half)
        return np.where(tiny, first, factor), np.where(tiny, second, 1.0)


def _split(norm: Norm) -> tuple[Any, Any]:
    """The exact norm as a number near 1 and a power of two."""
    (mantissa, i), (scale, j) = np.frexp(norm.mantissa), np.frexp(norm.scale)
    return mantissa * scale, i + j


def _multiply(arrays: Sequence[Array], out: Sequence[Array], factors: Sequence[tuple[Any, Any]]) -> None:
    """out = arrays·factors. Whatever can fail is done before the first array is written to."""
    in_precision: dict[tuple[int, Any], Any] = {}
    planned = []
    for a, o, both in zip(arrays, out, factors, strict=True):
        key = id(both), a.dtype
        if key not in in_precision:
            in_precision[key] = _in_precision(a.dtype, *both)
        if in_precision[key] or o is not a:
            planned.append((a, o, in_precision[key]))
    _write(planned)


def _in_precision(dtype: Any, first: Array, second: Array) -> list[tuple[Array, Any]]:
    """The factors other than 1, each with the dtype to multiply in. An element is rounded once to its own dtype."""
    needed = [f for f in (first, second) if (f != 1).any()]
    if _is_wide(dtype):
        return [(f, dtype.newbyteorder("=")) for f in needed]
    factor = first * second
    if ((factor > 0) & (factor < TINY)).any():  # too small for float32
        return [(factor, np.complex128 if dtype.kind == "c" else np.float64)]
    narrow = np.complex64 if dtype.kind == "c" else np.float32
    return [(np.asarray(factor, np.float32), narrow)] if needed else []


def _write(planned: Sequence[tuple[Array, Array, list[tuple[Array, Any]]]]) -> None:
    with np.errstate(all="ignore"):
        for a, o, multiply in planned:
            if not multiply:
                o[...] = a
            for factor, dtype in multiply:
                np.multiply(a, factor, out=o, dtype=dtype, casting="same_kind")
                a = o


# Clipping by value ----------------------------------------------------------------------------------------------------


def clamp(arrays: Sequence[Array], low: Any, high: Any) -> list[Array]:
    """The arrays with each element moved into [low, high]; NaN stays."""
    return _new(arrays, _clamp, low, high)


def clamp_(arrays: Sequence[Array], low: Any, high: Any) -> None:
    """The same in place."""
    _clamp(arrays, arrays, low, high)


def _clamp(arrays: Sequence[Array], out: Sequence[Array], low: Any, high: Any) -> None:
    limits = {dtype: [_as(dtype.type, x) for x in (low, high)] for dtype in {a.dtype for a in arrays}}
    with np.errstate(all="ignore"):
        for a, o in zip(arrays, out, strict=True):
            np.clip(a, *limits[a.dtype], out=o)


def _as(dtype: Any, number: Any) -> Any:
    """A number in another dtype, infinite if it does not fit."""
    with np.errstate(all="ignore"):
        return dtype(float(number))
