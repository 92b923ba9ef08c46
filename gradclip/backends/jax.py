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


def dtype_name(dtype: Any) -> str:
    name = str(dtype.name)
    # Made while double precision was on, an array keeps it, but JAX makes float32 of all that comes of it.
    off = name in ("float64", "complex128") and jnp.result_type(float) != jnp.float64
    return f"{name} while jax_enable_x64 is off" if off else name


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
    batches, dtype = _batches(arrays), _widest(arrays)
    if ord != 2:
        return _norm(*_measure_scaled(batches, ord, dtype))

    def squares(factor: Any = None) -> Array:
        return jnp.sum(jnp.stack([_sum_of_squares(b, dtype, factor=factor) for b in batches]))

    total = squares()
    right, factor = _rescaling(total, sum(_lost(b.size, dtype) for b in batches))
    return _norm(_square_root(jax.lax.cond(right, lambda: total, lambda: squares(factor))), 1 / factor)


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
    return jnp.float64 if x.dtype.name in ("float64", "complex128") else jnp.float32


def _widest(arrays: Sequence[Array]) -> Any:
    return jnp.float64 if any(_accumulator(a) == jnp.float64 for a in arrays) else jnp.float32


def _parts(x: Array) -> tuple[Array, ...]:
    """x itself if it is real, else its real and its imaginary part."""
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def _joinable(x: Array) -> bool:
    """Whether an array is small, and on one device: to join what is spread, devices would have to send it around."""
    return x.size < CHUNK and not any(jax.typeof(x).sharding.spec)


def _batches(arrays: Sequence[Array]) -> list[Array]:
    """The arrays, the small ones of each dtype joined: thousands of sums would keep the compiler busy for minutes."""
    alone: list[Array] = []
    small: dict[Any, list[Array]] = {}
    for a in arrays:
        if _joinable(a):
            small.setdefault(a.dtype, []).append(a.reshape(-1))
        else:
            alone.append(a)
    return alone + [jnp.concatenate(joined) for joined in small.values()] or [jnp.zeros(0)]


def _sum_of_squares(x: Array, dtype: Any, axis: Any = None, factor: Any = None) -> Array:
    """The sum of the squares of x, or of x times a factor."""
    parts = [p.astype(dtype) if factor is None else p.astype(dtype) * factor for p in _parts(x)]
    return functools.reduce(jnp.add, [jnp.sum(jnp.square(p), axis, keepdims=axis is not None) for p in parts])


def _lost(n: int, dtype: Any) -> float:
    """What a sum of n squares, of parts of complex numbers at most, may lack: XLA takes subnormal numbers for zero."""
    return 2 * n * float(np.finfo(dtype).smallest_normal)


def _rescaling(squares: Array, lost: Any) -> tuple[Array, Array]:
    """Whether sums of squares are right, and what to multiply the elements by to get others that are.

    A power of two for all norms whose squares overflow, and one for all whose squares vanish: no element need be looked
    at first.
    """
    power = 2.0**600 if squares.dtype == jnp.float64 else 2.0**80
    right = (squares < INF) & (squares >= np.asarray(lost * 2.0**22, squares.dtype))
    return right, jnp.where(right, 1.0, jnp.where(squares > 1, 1 / power, power)).astype(squares.dtype)


def _square_root(x: Array) -> Array:
    """The square root, with a derivative of 0 at 0."""
    return jnp.where(x == 0, 0.0, jnp.sqrt(jnp.where(x == 0, 1.0, x)))


def _measure_scaled(batches: Sequence[Array], ord: float, dtype: Any) -> tuple[Array, Array]:
    """Mantissa and scale of the norm, the scale being the largest absolute value: no power of the rest overflows."""
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
        largest = jnp.max(moduli, axis, keepdims=keepdims, initial=0)
        return jnp.where(largest > 0, largest, 0.0)
    positive = moduli > 0
    total = jnp.sum(jnp.where(positive, jnp.where(positive, moduli, 1.0) ** ord, 0.0), axis, keepdims=keepdims)
    norm = jnp.where(total > 0, total, 1.0) ** (1 / ord)
    return jnp.where(total > 0, jnp.minimum(norm, np.finfo(norm.dtype).max), 0.0)


def measure_each(arrays: Sequence[Array], ord: float, axes: Sequence[tuple[int, ...] | None]) -> list[Norm]:
    """Of each array its own norm or, along its axes, the norms of its slices."""
    norms: list[Norm] = _measure_each(arrays, ord, tuple(axes))
    return norms


@functools.partial(jax.jit, static_argnames=("ord", "axes"))
def _measure_each(arrays: Sequence[Array], ord: float, axes: Sequence[tuple[int, ...] | None]) -> list[Norm]:
    pairs = list(zip(arrays, axes, strict=True))
    if ord != 2:
        return [_scaled_norm(a, ord, axis) for a, axis in pairs]
    squares = [_sum_of_squares(a, _accumulator(a), axis) for a, axis in pairs]
    lost = [_lost(a.size // max(s.size, 1), s.dtype) for a, s in zip(arrays, squares, strict=True)]
    right, factors = zip(*map(_rescaling, squares, lost), strict=True) if arrays else ((), ())

    def again() -> list[Array]:
        return [_sum_of_squares(a, f.dtype, axis, f) for (a, axis), f in zip(pairs, factors, strict=True)]

    # One branch for all arrays: each costs the compiler time, and makes a GPU wait.
    each_right = jnp.stack([r.all() for r in right]).all() if right else True
    squares = jax.lax.cond(each_right, lambda: squares, again)
    return [_norm(_square_root(s), 1 / f) for s, f in zip(squares, factors, strict=True)]


def _scaled_norm(x: Array, ord: float, axis: tuple[int, ...] | None) -> Norm:
    """The norm of x, or of its slices along axis, whose lengths become 1, divided by its largest element first."""
    peak = _peak(x, axis, axis is not None)
    scale = _usable(peak)
    norm = _power_norm(_modulus(x, scale, _accumulator(x)), ord, axis, axis is not None)
    return _norm(jnp.where(jnp.isfinite(peak), norm, peak), scale)


def join(norms: Sequence[Norm], ord: float) -> Norm:
    """The norms of vectors that were measured in parts, from the norms of the parts."""
    joined: Norm = _join(norms, ord)
    return joined


@functools.partial(jax.jit, static_argnames="ord")
def _join(norms: Sequence[Norm], ord: float) -> Norm:
    dtype = jnp.result_type(*(n.value for n in norms))
    mantissa, scale = (jnp.stack(column).astype(dtype) for column in list(zip(*norms, strict=True))[1:])
    largest = _usable(jnp.max(jnp.where(mantissa > 0, scale, 0.0), 0))
    finite = jnp.isfinite(mantissa)
    parts = jnp.where(finite, mantissa, 0.0) * (scale / largest)
    peak = _usable(jnp.max(parts, 0))
    joined = _power_norm(parts / peak, ord, 0, False) * peak
    return _norm(jnp.where(finite.all(0), joined, jnp.max(mantissa, 0)), largest)


def unit_limits(norms: Sequence[Norm], clip_factor: Any, eps: Any) -> list[Norm]:
    """The limits r·max(‖W‖, eps) on the gradients of units, given the norms of the units' weights W."""
    limits: list[Norm] = _unit_limits(norms, *_parts_of(clip_factor), *_parts_of(eps)) if norms else []
    return limits


@jax.jit
def _unit_limits(norms: Sequence[Norm], r: Array, power: Array, least: Array, least_power: Array) -> list[Norm]:
    limits = []
    for value, mantissa, scale in norms:
        factor, by, lowest, lowest_by = (x.astype(value.dtype) for x in (r, power, least, least_power))
        small = value <= lowest * lowest_by
        n, s = jnp.where(small, lowest, mantissa), jnp.where(small, lowest_by, scale)
        limits.append(_norm(n * factor, s * by))
    return limits


def _parts_of(x: Any) -> tuple[Array, Array]:
    """A number as a mantissa and a power of two, both normal in float32 though the number may not be."""
    if isinstance(x, jax.Array):
        return x, jnp.ones((), x.dtype)
    exponent = min(max(math.frexp(x)[1] - 1, -126), 126) if 0 < x < INF else 0
    wide = jnp.result_type(float)  # float64 where that was switched on
    return _scalar(x / 2.0**exponent, wide), _scalar(2.0**exponent, wide)


# Clipping by a norm ---------------------------------------------------------------------------------------------------


def scale(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> list[Array]:
    """The arrays clipped to max_norm, given their norm."""
    clipped: list[Array] = _scale(arrays, norm, _scalar(max_norm, norm.value.dtype), nonfinite)
    return clipped


@functools.partial(jax.jit, static_argnames="nonfinite")
def _scale(arrays: Sequence[Array], norm: Norm, max_norm: Array, nonfinite: str) -> list[Array]:
    (factor, divisor), bad = _factors(norm, Norm(max_norm, max_norm, jnp.ones_like(max_norm)))
    if nonfinite == "keep":
        factor = jnp.where(bad, 1.0, factor)
    clipped = [_clipped(a, factor, divisor) for a in arrays]
    return [jnp.where(bad, 0, a) for a in clipped] if nonfinite == "zero" else clipped


def scale_each(arrays: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any]) -> list[Array]:
    """The arrays, or their slices, each clipped to its own limit, given their norms."""
    kinds = {(id(c), n.value.dtype): (c, n.value.dtype) for n, c in zip(norms, limits, strict=True)}
    same = {k: c if isinstance(c, Norm) else _scalar(c, dtype) for k, (c, dtype) in kinds.items()}
    places = {k: i for i, k in enumerate(same)}
    of_each = tuple(places[id(c), n.value.dtype] for n, c in zip(norms, limits, strict=True))
    clipped: list[Array] = _scale_each(arrays, norms, list(same.values()), of_each) if arrays else []
    return clipped


@functools.partial(jax.jit, static_argnames="of_each")
def _scale_each(arrays: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any], of_each: Any) -> list[Array]:
    clipped = []
    for a, n, i in zip(arrays, norms, of_each, strict=True):
        c = limits[i]
        c = c if isinstance(c, Norm) else Norm(c, c, jnp.ones((), n.value.dtype))
        clipped.append(_clipped(a, *_factors(n, c)[0]))
    return clipped


def _factors(norm: Norm, limit: Norm) -> tuple[tuple[Array, Array], Array]:
    """What to multiply by and what to divide by then, and whether the norm is not finite where it is needed."""
    # XLA turns a/(b/c) into a·c/b, which can overflow where b/c does not: so the quotient of the scales is a factor.
    c, n, s = limit.mantissa, norm.mantissa, limit.scale / norm.scale
    below = jnp.where(jnp.isinf(norm.value) & jnp.isfinite(n), c / n * s >= 1, norm.value <= limit.value)
    keep = below | (c == INF)
    bad = ~keep & ~jnp.isfinite(n)
    n = jnp.where(keep | bad, 1.0, n)  # where the branch not taken divides by zero, its derivative would be NaN
    ratio = jnp.where(keep, 1.0, jnp.where((c >= 0) & ~bad, c / n * s, NAN))
    # Too small for float32: apply its root twice, once by dividing, for a compiler may join two factors into one again.
    tiny = (ratio < TINY) & (c > 0)
    root = jnp.sqrt(jnp.where(tiny, c, 1.0)) / jnp.sqrt(n) * (jnp.sqrt(limit.scale) / jnp.sqrt(norm.scale))
    return (jnp.where(tiny, root, ratio), jnp.where(tiny, 1.0 / root, 1.0)), bad


def _clipped(x: Array, factor: Array, divisor: Array) -> Array:
    """x where nothing is to change, else x times the factor, by the divisor."""
    # No lax.cond here: a branch ends the fusion with what comes after, which would read the gradients once more.
    # A product with 1 would lose subnormal numbers, which XLA takes for zero.
    return jnp.where((factor == 1) & (divisor == 1), x, _times(x, factor, divisor))


def _times(x: Array, factor: Array, divisor: Array) -> Array:
    """A new array; half precision is multiplied in float32, and rounded once."""
    # A complex number times a real one would be the product of two complex ones, in which inf·0 is NaN.
    dtype = _accumulator(x)
    parts = [p.astype(dtype) * factor.astype(dtype) / divisor.astype(dtype) for p in _parts(x)]
    return (parts[0] if len(parts) == 1 else jax.lax.complex(*parts)).astype(x.dtype)


# Clipping by value ----------------------------------------------------------------------------------------------------


def clamp(arrays: Sequence[Array], low: Any, high: Any) -> list[Array]:
    """The arrays with each element moved into [low, high]; NaN stays."""
    limits = {a.dtype: (_scalar(low, a.dtype), _scalar(high, a.dtype)) for a in arrays}
    clipped: list[Array] = _clamp(arrays, [limits[a.dtype] for a in arrays])
    return clipped


@jax.jit
def _clamp(arrays: Sequence[Array], limits: Sequence[tuple[Array, Array]]) -> list[Array]:
    # XLA's minimum and maximum take subnormal numbers for zero, a selection leaves them as they are.
    pairs = zip(arrays, limits, strict=True)
    return [jnp.where((a < least) | (a > most), jnp.clip(a, least, most), a) for a, (least, most) in pairs]
