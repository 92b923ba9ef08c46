"""JAX: one expression for all cases, which a compiler fuses with the step that takes the clipped gradients."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import TINY, Norm

NAME = "JAX"
CHUNK = 1 << 14  # smaller arrays are joined
INF = float("inf")
NAN = float("nan")
UNIT_AXIS = -1  # of a weight of shape (…, in, out)

Array = Any  # jax.Array


# What rules.py asks about an array ------------------------------------------------------------------------------------


def is_array(x: object) -> bool:
    return isinstance(x, jax.Array)


@functools.cache
def dtype_name(dtype: Any) -> str:
    return str(dtype.name)


def host_value(x: Array) -> float | None:
    """The value of a 0-d array where the host can read it without waiting, else None."""
    known = not is_traced([x]) and all(device.platform == "cpu" for device in x.devices())
    # NumPy reads it, for inside a function that is traced JAX would trace the reading too.
    return float(np.min(np.asarray(x))) if known and x.size else None


def is_traced(arrays: Sequence[Array]) -> bool:
    return any(isinstance(a, jax.core.Tracer) for a in arrays)


def constant(x: Array) -> Array:
    """x, without a derivative."""
    return jax.lax.stop_gradient(x)


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return jnp.reshape(x, shape)


def all_finite(x: Array) -> bool:
    return bool(jnp.isfinite(x).all())


def is_sparse(x: Array) -> bool:
    return False


# The norm -------------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="ord")
def measure(arrays: Sequence[Array], ord: float) -> Norm:
    """The norm of all arrays joined."""
    if ord != 2:
        return _norm(*_measure_scaled(arrays, ord))
    dtype = _widest(arrays)
    batches = [b.astype(_accumulator(b)) for b in _batches([p for a in arrays for p in _parts(a)])]
    squares = jnp.sum(jnp.stack([jnp.sum(jnp.square(b)).astype(dtype) for b in batches]))
    # A square below the smallest normal number may be lost; the sum must be so large that it would not count.
    lost = sum(b.size * (2.0**-1022 if b.dtype == jnp.float64 else 2.0**-126) for b in batches)
    right = (squares < INF) & (squares >= lost * 2**22) & (squares > 0)
    unscaled = (jnp.sqrt(jnp.where(right, squares, 1.0)), jnp.ones_like(squares))
    return _norm(*jax.lax.cond(right, lambda: unscaled, lambda: _measure_scaled(arrays, ord)))


def given(norm: Any, arrays: Sequence[Array]) -> Norm:
    """A norm that the caller has measured."""
    return _norm(_scalar(norm, _widest(arrays)), jnp.ones((), _widest(arrays)))


def _norm(mantissa: Array, scale: Array) -> Norm:
    return Norm(mantissa * scale, mantissa, scale)


def _scalar(x: Any, dtype: Any) -> Array:
    """A number or 0-d array as one of this dtype, infinite if it does not fit."""
    with np.errstate(over="ignore", under="ignore"):
        return jnp.asarray(x, dtype)


def _accumulator(x: Array) -> Any:
    """The dtype of the norm of x: JAX has float64 only where it was switched on."""
    return jnp.float64 if dtype_name(x.dtype) in ("float64", "complex128") else jnp.float32


def _widest(arrays: Sequence[Array]) -> Any:
    return jnp.float64 if any(_accumulator(a) == jnp.float64 for a in arrays) else jnp.float32


def _parts(x: Array) -> tuple[Array, ...]:
    """x itself if it is real, else its real and its imaginary part."""
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def _batches(arrays: Sequence[Array]) -> list[Array]:
    """The arrays, the small ones of each dtype joined: thousands of sums would keep the compiler busy for minutes."""
    alone: list[Array] = []
    small: dict[Any, list[Array]] = {}
    for a in arrays:
        # To join what is spread over devices, they would have to send it to each other.
        if a.size >= CHUNK or any(jax.typeof(a).sharding.spec):
            alone.append(a)
        else:
            small.setdefault(a.dtype, []).append(a.reshape(-1))
    return alone + [jnp.concatenate(joined) for joined in small.values()] or [jnp.zeros(0)]


def _measure_scaled(arrays: Sequence[Array], ord: float) -> tuple[Array, Array]:
    """Mantissa and scale of the norm, the scale being the largest absolute value: no power of the rest overflows."""
    dtype = _widest(arrays)
    batches = _batches(arrays)
    peak = jnp.max(jnp.stack([_peak(b, None, False).astype(dtype) for b in batches]))
    scale = _usable(peak)
    moduli = [_modulus(b, scale, dtype) for b in batches]
    norms = jnp.stack([_power_norm(m, ord, None, False) for m in moduli])
    return jnp.where(jnp.isfinite(peak), _power_norm(norms, ord, None, False), peak), scale


def _peak(x: Array, axis: Any, keepdims: bool) -> Array:
    """The largest absolute value of a real or imaginary part, NaN if there is one, 0 if there is nothing."""
    largest = [jnp.max(jnp.abs(p), axis, keepdims=keepdims, initial=0) for p in _parts(x)]
    return functools.reduce(jnp.maximum, largest).astype(_accumulator(x))


def _usable(peak: Array) -> Array:
    """A power of two near the peak to divide by, or 1 where that is zero or not finite."""
    # XLA divides by multiplying with the reciprocal: that of a power of two is exact, and kept from being subnormal.
    exponent_bits, largest = (11, 2.0**1022) if peak.dtype == jnp.float64 else (8, 2.0**126)
    power = jax.lax.reduce_precision(jnp.minimum(peak, largest), exponent_bits, 0)
    return jax.lax.stop_gradient(jnp.where((peak > 0) & jnp.isfinite(peak), power, 1.0))


def _modulus(x: Array, scale: Array, dtype: Any) -> Array:
    """|x| / scale. Complex parts are scaled first, for their squares are added."""
    parts = [p.astype(dtype) / scale for p in _parts(x)]
    return jnp.abs(parts[0] if len(parts) == 1 else jax.lax.complex(*parts))


def _power_norm(moduli: Array, ord: float, axis: Any, keepdims: bool) -> Array:
    """(Σ mᵖ)¹ᐟᵖ, kept finite, with a derivative of 0 at m = 0."""
    if ord == INF:
        return jnp.max(moduli, axis, keepdims=keepdims, initial=0)
    positive = moduli > 0
    total = jnp.sum(jnp.where(positive, jnp.where(positive, moduli, 1.0) ** ord, 0.0), axis, keepdims=keepdims)
    norm = jnp.where(total > 0, total, 1.0) ** (1 / ord)
    return jnp.where(total > 0, jnp.minimum(norm, np.finfo(norm.dtype).max), 0.0)


def measure_each(arrays: Sequence[Array], ord: float, axes: Sequence[tuple[int, ...] | None]) -> list[Norm]:
    """Of each array its own norm or, along its axes, the norms of its slices."""
    pairs = zip(arrays, axes, strict=True)
    return [measure([a], ord) if axis is None else slice_norms(a, ord, axis) for a, axis in pairs]


def join(norms: Sequence[Norm], ord: float) -> Norm:
    """The norms of vectors that were measured in parts, from the norms of the parts."""
    dtype = jnp.result_type(*(n.value for n in norms))
    mantissa, scale = (jnp.stack(column).astype(dtype) for column in list(zip(*norms, strict=True))[1:])
    largest = _usable(jnp.max(jnp.where(mantissa > 0, scale, 0.0), 0))
    finite = jnp.isfinite(mantissa)
    joined = _power_norm(jnp.where(finite, mantissa, 0.0) * (scale / largest), ord, 0, False)
    return _norm(jnp.where(finite.all(0), joined, jnp.max(mantissa, 0)), largest)


def unit_limits(norms: Sequence[Norm], clip_factor: Any, eps: Any) -> list[Norm]:
    """The limits r·max(‖W‖, eps) on the gradients of units, given the norms of the units' weights W."""
    limits = []
    for value, mantissa, scale in norms:
        r, power = _split(clip_factor, value.dtype)
        least, least_power = _split(eps, value.dtype)
        small = value <= least * least_power
        n, s = jnp.where(small, least, mantissa), jnp.where(small, least_power, scale)
        limits.append(_norm(n * r, s * power))
    return limits


def _split(x: Any, dtype: Any) -> tuple[Array, Array]:
    """A number as a mantissa and a power of two that dtype can hold, though the number may be subnormal there."""
    if isinstance(x, jax.Array):
        return x.astype(dtype), jnp.ones((), dtype)
    exponent = min(max(math.frexp(x)[1] - 1, -126), 126) if 0 < x < INF else 0
    return _scalar(x / 2.0**exponent, dtype), _scalar(2.0**exponent, dtype)


# Clipping by a norm ---------------------------------------------------------------------------------------------------


def scale(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> list[Array]:
    """The arrays clipped to max_norm, given their norm."""
    clipped: list[Array] = _scale(arrays, norm, _scalar(max_norm, norm.value.dtype), nonfinite)
    return clipped


@functools.partial(jax.jit, static_argnames="nonfinite")
def _scale(arrays: Sequence[Array], norm: Norm, max_norm: Array, nonfinite: str) -> list[Array]:
    (factor, divisor), bad = _factors(norm, max_norm)
    if nonfinite == "keep":
        factor = jnp.where(bad, 1.0, factor)
    # No lax.cond here: a branch ends the fusion with what comes after, which would read the gradients once more.
    same = (factor == 1) & (divisor == 1)
    clipped = [jnp.where(same, a, _times(a, factor, divisor)) for a in arrays]
    return [jnp.where(bad, 0, a) for a in clipped] if nonfinite == "zero" else clipped


def scale_each(arrays: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any]) -> list[Array]:
    """The arrays, or their slices, each clipped to its own limit, given their norms."""
    return [
        scale([a], n, c, "nan")[0] if n.value.ndim == 0 and not isinstance(c, Norm) else scale_slices(a, n, c)
        for a, n, c in zip(arrays, norms, limits, strict=True)
    ]


def _factors(norm: Norm, max_norm: Any) -> tuple[tuple[Array, Array], Array]:
    """What to multiply by and what to divide by then, and whether the norm is not finite where it is needed."""
    limit = max_norm if isinstance(max_norm, Norm) else Norm(max_norm, max_norm, 1.0)
    # XLA turns a/(b/c) into a·c/b, which can overflow where b/c does not: so the quotient of the scales is a factor.
    c, n, s = limit.mantissa, norm.mantissa, limit.scale / norm.scale
    below = jnp.where(jnp.isinf(norm.value) & jnp.isfinite(n), c / n * s >= 1, norm.value <= limit.value)
    keep = below | (c == INF)
    bad = ~keep & ~jnp.isfinite(n)
    n = jnp.where(keep | bad, 1.0, n)  # where the branch not taken divides by zero, its derivative would be NaN
    ratio = jnp.where(keep, 1.0, jnp.where((c >= 0) & ~bad, c / n * s, NAN))
    # Too small for float32: apply its root twice, once by dividing, for a compiler may join two factors into one again.
    tiny = (ratio < TINY) & (c > 0)
    root = jnp.sqrt(jnp.where(tiny, c / n, 1.0)) * (jnp.sqrt(limit.scale) / jnp.sqrt(norm.scale))
    return (jnp.where(tiny, root, ratio), jnp.where(tiny, 1.0 / root, 1.0)), bad


def _times(x: Array, factor: Array, divisor: Array) -> Array:
    """A new array; half precision is multiplied in float32, and rounded once."""
    # A complex number times a real one would be the product of two complex ones, in which inf·0 is NaN.
    dtype = _accumulator(x)
    parts = [p.astype(dtype) * factor.astype(dtype) / divisor.astype(dtype) for p in _parts(x)]
    return (parts[0] if len(parts) == 1 else jax.lax.complex(*parts)).astype(x.dtype)


# Clipping each slice by its own norm ----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("ord", "axis"))
def slice_norms(x: Array, ord: float, axis: tuple[int, ...]) -> Norm:
    """The norms of the slices of x along axis, whose lengths become 1."""
    peak = _peak(x, axis, True)
    scale = _usable(peak)
    norm = _power_norm(_modulus(x, scale, _accumulator(x)), ord, axis, True)
    return _norm(jnp.where(jnp.isfinite(peak), norm, peak), scale)


def scale_slices(x: Array, norm: Norm, limit: Any) -> Array:
    """x with each slice clipped to its limit, given the norms of the slices."""
    return _scale_slices(x, norm, limit if isinstance(limit, Norm) else _scalar(limit, norm.value.dtype))


@jax.jit
def _scale_slices(x: Array, norm: Norm, limit: Any) -> Array:
    factor, divisor = _factors(norm, limit)[0]
    # A product with 1 would lose subnormal numbers, which XLA takes for zero.
    return jnp.where((factor == 1) & (divisor == 1), x, _times(x, factor, divisor))


# Clipping by value ----------------------------------------------------------------------------------------------------


def clamp(arrays: Sequence[Array], low: Any, high: Any) -> list[Array]:
    """The arrays with each element moved into [low, high]; NaN stays."""
    # XLA's minimum and maximum take subnormal numbers for zero, a selection leaves them as they are.
    limits = [(_scalar(low, a.dtype), _scalar(high, a.dtype)) for a in arrays]
    pairs = zip(arrays, limits, strict=True)
    return [jnp.where((a < least) | (a > most), jnp.clip(a, least, most), a) for a, (least, most) in pairs]
