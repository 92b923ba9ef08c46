"""NumPy: everything is on the host, so a plain ``if`` decides whether anything is written at all."""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

NAME = "NumPy"
BLOCK = 1024  # elements whose squares are summed in their own precision; blocks are joined in float64
CHUNK = 1 << 16  # elements handled at a time: they stay in the cache from one operation to the next
TINY = 2.0**-126  # the smallest normal float32
WIDE = {np.dtype(np.float64), np.dtype(np.complex128)}
MAX = float(np.finfo(np.float64).max)
UNIT_AXIS = -1  # of a weight of shape (…, in, out)

Array = Any  # a NumPy array or scalar of one of the dtypes that rules.py takes


class Norm(NamedTuple):
    """A norm: ``value`` as it is returned, and the exact one, mantissa·scale, which ``value`` may be too narrow for."""

    value: Any
    mantissa: Any
    scale: Any


# What rules.py asks about an array ------------------------------------------------------------------------------------


def is_array(x: object) -> bool:
    return isinstance(x, (np.ndarray, np.generic))


@functools.cache
def dtype_name(dtype: Any) -> str:
    return str(dtype.name)


def host_value(x: Array) -> float | None:
    """The value of a 0-d array where the host can read it without waiting, else None."""
    return float(x)


def is_traced(arrays: Sequence[Array]) -> bool:
    return False


def why_not_writable(x: Array) -> str | None:
    if not isinstance(x, np.ndarray):
        return "is a NumPy scalar, which nothing can be written to"
    if not x.flags.writeable:
        return "is read-only"
    if 0 in x.strides and any(stride == 0 and n > 1 for stride, n in zip(x.strides, x.shape, strict=True)):
        return "is broadcast: several of its elements share one place in memory"
    return None


writing = contextlib.nullcontext  # the context in which rules.py writes in place


def all_finite(x: Array) -> bool:
    return bool(np.isfinite(x).all())


def is_sparse(x: Array) -> bool:
    return False


# The norm -------------------------------------------------------------------------------------------------------------


def measure(arrays: Sequence[Array], ord: float) -> Norm:
    """The norm of all arrays joined."""
    with np.errstate(all="ignore"):
        if ord == 2:
            squares, lost = 0.0, 0.0
            for dtype, its in _by_dtype(arrays).items():
                parts = [p for a in its for p in _parts(a)] if dtype.kind == "c" else its
                for batch in _batches(parts, _accumulator(dtype)):
                    squares += _sum_of_squares(batch)
                    # A square below the smallest normal number is lost. That must not be felt in the sum.
                    lost += batch.size * (2.0**-1022 if dtype in WIDE else 2.0**-126)
            if lost * 2**22 <= squares < math.inf:
                return _norm(arrays, math.sqrt(squares), 1.0)
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


def _norm(arrays: Sequence[Array], mantissa: float, scale: float) -> Norm:
    wide = any(a.dtype in WIDE for a in arrays)
    return Norm(_as(np.float64(0) if wide else np.float32(0), mantissa * scale), mantissa, scale)


def _by_dtype(arrays: Sequence[Array]) -> dict[Any, list[Array]]:
    groups: dict[Any, list[Array]] = {}
    for a in arrays:
        groups.setdefault(a.dtype, []).append(a)
    return groups


def _accumulator(dtype: Any) -> Any:
    """The dtype of the norm of arrays of this dtype."""
    return np.float64 if dtype in WIDE else np.float32


def _parts(x: Array) -> tuple[Array, ...]:
    """x itself if it is real, else its real and its imaginary part."""
    return (x.real, x.imag) if x.dtype.kind == "c" else (x,)


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
            yield np.abs(batch / peak)


# Clipping by a norm ---------------------------------------------------------------------------------------------------


def scale(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> list[Array]:
    """The arrays clipped to max_norm, given their norm."""
    out = [np.empty_like(a) for a in arrays]
    _scale(arrays, out, norm, float(max_norm), nonfinite)
    return out


def scale_(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> None:
    """The same in place. Where nothing is clipped, nothing is written."""
    _scale(arrays, arrays, norm, float(max_norm), nonfinite)


def _scale(arrays: Sequence[Array], out: Sequence[Array], norm: Norm, max_norm: float, nonfinite: str) -> None:
    finite = math.isfinite(norm.mantissa)
    if max_norm == math.inf or norm.value <= _as(norm.value, max_norm) or (not finite and nonfinite == "keep"):
        if out is not arrays:
            for a, o in zip(arrays, out, strict=True):
                o[...] = a
    elif not finite:
        for o in out:
            o[...] = 0.0 if nonfinite == "zero" else math.nan
    else:
        factor = max_norm / norm.mantissa / norm.scale
        if max_norm > 0 and factor < TINY:  # too small for float32: multiply twice by its root
            factor = math.sqrt(max_norm / norm.mantissa) / math.sqrt(norm.scale)
            arrays = _multiply(arrays, factor, out)
        _multiply(arrays, factor, out)


def _multiply(arrays: Sequence[Array], factor: Any, out: Sequence[Array]) -> Sequence[Array]:
    factors = {dtype: np.asarray(factor, dtype) for dtype in (np.float32, np.float64)}
    with np.errstate(under="ignore"):
        for a, o in zip(arrays, out, strict=True):
            np.multiply(a, factors[_accumulator(a.dtype)], o)
    return out


def _as(like: Any, number: float) -> Any:
    """A number in the dtype of ``like``, infinite if it does not fit."""
    with np.errstate(over="ignore", under="ignore"):
        return like.dtype.type(number)


# Clipping each slice by its own norm ----------------------------------------------------------------------------------


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
            moduli = np.abs(wide / scale[slab])
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


def scale_slices(x: Array, norm: Norm, limit: Any) -> Array:
    """x with each slice clipped to its limit, given the norms of the slices."""
    out = np.empty_like(x)
    _scale_slices(x, out, norm, limit)
    return out


def scale_slices_(x: Array, norm: Norm, limit: Any) -> None:
    """The same in place. Where nothing is clipped, nothing is written."""
    _scale_slices(x, x, norm, limit)


def _scale_slices(x: Array, out: Array, norm: Norm, limit: Any) -> None:
    with np.errstate(all="ignore"):
        kept = (norm.value <= np.asarray(limit, norm.value.dtype)) | (np.asarray(limit) == math.inf)
        ratio = limit / norm.mantissa / norm.scale
        factor = np.where(kept, 1.0, np.where(np.isfinite(norm.mantissa), ratio, math.nan))
        tiny = (factor < TINY) & (np.asarray(limit) > 0)
        if tiny.any():
            root = np.sqrt(limit / norm.mantissa) / np.sqrt(norm.scale)
            factor = np.where(tiny, root, factor)
            (x,) = _multiply([x], np.where(tiny, root, 1.0), [out])
    if kept.all():
        if out is not x:
            out[...] = x
    else:
        _multiply([x], factor, [out])


def at_least(x: Array, floor: float) -> Array:
    return np.maximum(x, _as(x, floor))


# Clipping by value ----------------------------------------------------------------------------------------------------


def clamp(x: Array, low: Any, high: Any) -> Array:
    """x with each element moved into [low, high]; NaN stays."""
    return np.clip(x, _as(x, float(low)), _as(x, float(high)), out=np.empty_like(x))


def clamp_(x: Array, low: Any, high: Any) -> None:
    np.clip(x, _as(x, float(low)), _as(x, float(high)), out=x)
