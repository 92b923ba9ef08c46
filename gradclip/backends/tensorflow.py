"""TensorFlow: ``tf.cond`` decides, eagerly or in a graph, so that gradients within the threshold pass untouched."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from . import TINY, Norm

NAME = "TensorFlow"
BLOCK = 512  # elements whose squares are summed in their own precision; blocks are joined in float64
CHUNK = 1 << 18  # smaller arrays are joined: TensorFlow spends microseconds on each operation
JOINED = 1 << 22  # as long as this many elements hold them, for joining copies them
MAX = tf.float64.max
INF = float("inf")
NAN = float("nan")
UNIT_AXIS = -1  # of a weight of shape (…, in, out)

Array = Any  # tf.Tensor, tf.Variable or tf.IndexedSlices


# What rules.py asks about an array ------------------------------------------------------------------------------------


def is_array(x: object) -> bool:
    return isinstance(x, (tf.Tensor, tf.Variable, tf.IndexedSlices))


def dtype_name(dtype: tf.DType) -> str:
    return str(dtype.name)


def host_value(x: Array) -> float | None:
    """The value of a 0-d array where the host can read it without waiting, else None."""
    if not known(x) or not tf.size(x):
        return None
    return float(tf.convert_to_tensor(x).numpy().min())  # which is NaN if there is one; tf.reduce_min may pass it over


def known(x: Array) -> bool:
    """Whether the host can read x without waiting."""
    return tf.executing_eagerly() and "CPU" in x.device


def is_traced(arrays: Sequence[Array]) -> bool:
    return not tf.executing_eagerly()


def constant(x: Array) -> Array:
    """x, without a derivative."""
    return tf.stop_gradient(x)


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return tf.reshape(x, shape)


def all_finite(x: Array) -> bool:
    parts = _parts(x)
    return all(bool(tf.reduce_all(tf.math.is_finite(p))) for p in parts)


# Sparse arrays --------------------------------------------------------------------------------------------------------


def is_sparse(x: Array) -> bool:
    return isinstance(x, tf.IndexedSlices)


def sparse_axes(x: Array) -> int:
    """How many axes the indices of x count."""
    return 1


def coalesce(x: Array) -> Array:
    """The same array with every index once; under XLA, which has no arrays of unknown length, also some zeros at 0."""
    if not _in_xla():
        indices, place = tf.unique(x.indices)
        n = tf.size(indices)
    else:
        order = tf.argsort(x.indices)
        ranked = tf.gather(x.indices, order)
        new = tf.concat([tf.zeros_like(ranked[:1], tf.bool), tf.not_equal(ranked[1:], ranked[:-1])], 0)
        place = tf.scatter_nd(order[:, tf.newaxis], tf.cumsum(tf.cast(new, tf.int32)), tf.shape(order))
        n = tf.size(order)
        indices = tf.maximum(tf.math.unsorted_segment_max(x.indices, place, n), 0)
    return tf.IndexedSlices(tf.math.unsorted_segment_sum(x.values, place, n), indices, x.dense_shape)


def sparse_values(x: Array) -> Array:
    return x.values


def with_values(x: Array, values: Array) -> Array:
    return tf.IndexedSlices(values, x.indices, x.dense_shape)


def rows_of(dense: Array, x: Array) -> Array:
    """The rows of a dense array that x has values for."""
    return tf.gather(dense, x.indices)


def _in_xla() -> bool:
    """Whether what is being traced will be compiled by XLA, which lacks some operations."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


# The norm -------------------------------------------------------------------------------------------------------------


def measure(arrays: Sequence[Array], ord: float) -> Norm:
    """The norm of all arrays joined."""
    batches = [_join([arrays[i] for i in batch]) for batch in _batches(arrays)] or [tf.zeros(1)]
    if ord != 2:
        return _norm(arrays, *_measure_scaled(batches, ord))
    norms, lost = [], tf.zeros((), tf.float64)
    for batch in batches:
        for part in _parts(batch):
            norms += [tf.cast(n, tf.float64) for n in _block_norms(tf.cast(part, _accumulator(batch)))]
            # A square below the smallest normal number may be lost; the sum must be so large that it would not count.
            smallest = 2.0**-1022 if _accumulator(batch) == tf.float64 else 2.0**-126
            lost += smallest * tf.cast(tf.size(part), tf.float64)
    norm = _two_norms(tf.concat(norms, 0)[tf.newaxis])[0]
    right = (norm < INF) & (norm >= tf.sqrt(lost) * 2**11)
    unscaled = (norm, tf.ones((), tf.float64))
    return _norm(arrays, *tf.cond(right, lambda: unscaled, lambda: _measure_scaled(batches, ord)))


def given(norm: Any, arrays: Sequence[Array]) -> Norm:
    """A norm that the caller has measured."""
    return _norm(arrays, _scalar(norm, tf.float64), tf.ones((), tf.float64))


def _norm(arrays: Sequence[Array], mantissa: Array, scale: Array) -> Norm:
    wide = any(_accumulator(a) == tf.float64 for a in arrays)
    return Norm(tf.cast(mantissa * scale, tf.float64 if wide else tf.float32), mantissa, scale)


def _scalar(x: Any, dtype: tf.DType) -> Array:
    """A number or 0-d array as one of this dtype; a number that went through float32 would lose digits."""
    if not tf.is_tensor(x):
        x = tf.constant(x, tf.float64)
    return tf.cast(tf.reshape(x, ()) if x.shape.rank is None else x, dtype)


def _accumulator(x: Array) -> tf.DType:
    """The dtype of the norm of x."""
    return tf.float64 if x.dtype in (tf.float64, tf.complex128) else tf.float32


def _parts(x: Array) -> tuple[Array, ...]:
    """x itself if it is real, else its real and its imaginary part."""
    return (tf.math.real(x), tf.math.imag(x)) if x.dtype.is_complex else (x,)


def _batches(arrays: Sequence[Array]) -> list[list[int]]:
    """The positions of arrays to be joined: the small ones of each dtype. The others stay by themselves."""
    alone: list[list[int]] = []
    small: dict[tf.DType, list[int]] = {}
    room = JOINED
    for i, a in enumerate(arrays):
        n = a.shape.num_elements()
        if n is None or n >= min(CHUNK, room):
            alone.append([i])
        else:
            small.setdefault(a.dtype, []).append(i)
            room -= n
    return [*alone, *small.values()]


def _join(arrays: Sequence[Array]) -> Array:
    """One flat array. A thousand reshapes that change nothing would take long, so they are left out."""
    flat = [a if a.shape.rank == 1 else tf.reshape(a, [-1]) for a in map(tf.convert_to_tensor, arrays)]
    return flat[0] if len(flat) == 1 else tf.concat(flat, 0)


def _split(flat: Array, like: Sequence[Array]) -> list[Array]:
    """The arrays that were joined."""
    parts = [flat] if len(like) == 1 else tf.split(flat, [a.shape.num_elements() for a in like])
    shapes = [a.shape if a.shape.is_fully_defined() else tf.shape(a) for a in like]
    return [p if a.shape.rank == 1 else tf.reshape(p, s) for p, a, s in zip(parts, like, shapes, strict=True)]


def _block_norms(flat: Array) -> list[Array]:
    """The norms of the blocks of a flat array, and of what is left over."""
    n = tf.size(flat) if flat.shape[0] is None else flat.shape[0]
    whole = n - n % BLOCK
    blocks = _two_norms(tf.reshape(flat[:whole], [-1, BLOCK]))
    return [blocks] if flat.shape[0] == whole else [blocks, _two_norms(flat[tf.newaxis, whole:])]


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _two_norms(rows: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The norm of each row. Its derivative at zero is 0, where that of a square root is NaN."""
    # XLA fuses the first, and lacks the second, which needs no array of squares.
    norms = tf.sqrt(tf.reduce_sum(tf.square(rows), 1)) if _in_xla() else tf.math.reduce_euclidean_norm(rows, 1)
    # The derivative measures once more, by this function, so that its own derivative is 0 at zero, too.
    return norms, lambda upstream: rows * tf.math.divide_no_nan(upstream, _two_norms(rows))[:, tf.newaxis]


def _measure_scaled(batches: Sequence[Array], ord: float) -> tuple[Array, Array]:
    """Mantissa and scale of the norm, the scale being the largest absolute value: no power of the rest overflows."""
    peak = tf.reduce_max(tf.stack([_peak(b, None, False) for b in batches]))
    peak = tf.where(
        tf.reduce_any(tf.stack([_any_nan(b, None, False) for b in batches])), tf.cast(NAN, tf.float64), peak
    )
    scale = _usable(peak)
    norms = tf.stack([_power_norm(_modulus(b, scale), ord, [0], False) for b in batches])
    return tf.where(tf.math.is_finite(peak), _power_norm(norms, ord, [0], False), peak), scale


def _peak(x: Array, axis: Any, keepdims: bool) -> Array:
    """The largest absolute value of a real or imaginary part, 0 if there is none; NaN may be passed over."""
    peaks = [tf.cast(tf.reduce_max(tf.abs(p), axis, keepdims), tf.float64) for p in _parts(x)]
    return tf.maximum(tf.reduce_max(tf.stack(peaks), 0), 0.0)


def _any_nan(x: Array, axis: Any, keepdims: bool) -> Array:
    """Whether there is a NaN: XLA's maximum does not say so."""
    return tf.reduce_any(tf.stack([tf.reduce_any(tf.math.is_nan(p), axis, keepdims) for p in _parts(x)]), 0)


def _usable(peak: Array) -> Array:
    """A scale to divide by: the peak, or 1 where that is zero or not finite."""
    return tf.stop_gradient(tf.where((peak > 0) & tf.math.is_finite(peak), peak, 1.0))


def _modulus(x: Array, scale: Array) -> Array:
    """|x| / scale in float64. Complex parts are scaled first, for their squares are added."""
    # XLA divides by multiplying with the reciprocal. That of a huge scale is subnormal, and taken for zero.
    far, one = tf.constant(2.0**512, tf.float64), tf.ones((), tf.float64)
    shift = tf.where(scale > far, 1 / far, tf.where(scale < 1 / far, far, one))
    parts = [tf.cast(p, tf.float64) * shift / (scale * shift) for p in _parts(x)]
    return tf.abs(parts[0] if len(parts) == 1 else tf.complex(*parts))


def _power_norm(moduli: Array, ord: float, axis: Sequence[int], keepdims: bool) -> Array:
    """(Σ mᵖ)¹ᐟᵖ, kept finite, with a derivative of 0 at m = 0."""
    if ord == INF:
        return tf.maximum(tf.reduce_max(moduli, axis, keepdims), 0.0)
    positive = moduli > 0
    powers = tf.where(positive, tf.where(positive, moduli, 1.0) ** ord, 0.0)
    total = tf.reduce_sum(powers, axis, keepdims)
    return tf.where(total > 0, tf.minimum(tf.where(total > 0, total, 1.0) ** (1 / ord), MAX), 0.0)


def measure_each(arrays: Sequence[Array], ord: float, axes: Sequence[tuple[int, ...] | None]) -> list[Norm]:
    """Of each array its own norm or, along its axes, the norms of its slices."""
    pairs = zip(arrays, axes, strict=True)
    return [measure([a], ord) if axis is None else slice_norms(a, ord, axis) for a, axis in pairs]


def join(norms: Sequence[Norm], ord: float) -> Norm:
    """The norms of vectors that were measured in parts, from the norms of the parts."""
    mantissa, scale = (tf.stack(column) for column in list(zip(*norms, strict=True))[1:])
    largest = _usable(tf.reduce_max(tf.where(mantissa > 0, scale, 0.0), 0))
    finite = tf.math.is_finite(mantissa)
    joined = _power_norm(tf.where(finite, mantissa, 0.0) * (scale / largest), ord, [0], False)
    joined = tf.where(
        tf.reduce_all(finite, 0), joined, tf.reduce_sum(tf.where(finite, tf.zeros_like(mantissa), mantissa), 0)
    )
    wide = tf.float64 if any(n.value.dtype == tf.float64 for n in norms) else tf.float32
    return Norm(tf.cast(joined * largest, wide), joined, largest)


def unit_limits(norms: Sequence[Norm], clip_factor: Any, eps: Any) -> list[Norm]:
    """The limits r·max(‖W‖, eps) on the gradients of units, given the norms of the units' weights W."""
    clip_factor, eps = _scalar(clip_factor, tf.float64), _scalar(eps, tf.float64)
    limits = []
    for _, mantissa, scale in norms:
        small = mantissa * scale <= eps
        mantissa = tf.where(small, eps, mantissa) * clip_factor
        scale = tf.where(small, tf.ones_like(scale), scale)
        limits.append(Norm(mantissa * scale, mantissa, scale))
    return limits


# Clipping by a norm ---------------------------------------------------------------------------------------------------


def scale(arrays: Sequence[Array], norm: Norm, max_norm: Any, nonfinite: str) -> list[Array]:
    """The arrays clipped to max_norm, given their norm."""
    batches = _batches(arrays)
    flat = [_join([arrays[i] for i in batch]) for batch in batches]
    (factor, divisor), bad = _factors(norm, max_norm)
    if nonfinite == "keep":
        factor = tf.where(bad, tf.ones_like(factor), factor)
    clipped: list[Array] = tf.cond(
        _is_one(factor, divisor),
        lambda: list(flat),
        lambda: tf.cond(_is_one(divisor), lambda: _times(flat, factor), lambda: _times(flat, factor, divisor)),
    )
    if nonfinite == "zero":
        clipped = [tf.where(bad, tf.zeros_like(a), a) for a in clipped]
    parts = [_split(c, [arrays[i] for i in batch]) for c, batch in zip(clipped, batches, strict=True)]
    by_place = dict(zip(itertools.chain(*batches), itertools.chain(*parts), strict=True))
    return [by_place[i] for i in range(len(arrays))]


def scale_each(arrays: Sequence[Array], norms: Sequence[Norm], limits: Sequence[Any]) -> list[Array]:
    """The arrays, or their slices, each clipped to its own limit, given their norms."""
    return [
        scale([a], n, c, "nan")[0] if n.value.shape.rank == 0 and not isinstance(c, Norm) else scale_slices(a, n, c)
        for a, n, c in zip(arrays, norms, limits, strict=True)
    ]


def _factors(norm: Norm, limit: Any) -> tuple[tuple[Array, Array], Array]:
    """The clipping rule: what to multiply and then divide by; and where the norm is not finite, so that it is NaN."""
    given = limit if isinstance(limit, Norm) else Norm(limit, limit, 1.0)
    c = Norm(*(_scalar(x, tf.float64) for x in given))
    one, nan = tf.ones((), tf.float64), tf.cast(NAN, tf.float64)
    finite = tf.math.is_finite(norm.mantissa)
    # Where the branch not taken divides by zero, its derivative would be NaN.
    n = tf.where(finite & (norm.mantissa > 0), norm.mantissa, one)
    quotient = c.mantissa / n * c.scale / norm.scale
    # A norm that overflowed, though it is finite, is compared as it is; any other as it is returned.
    below = tf.where(
        tf.math.is_inf(norm.value), finite & (quotient >= 1), norm.value <= tf.cast(c.value, norm.value.dtype)
    )
    keep = below | tf.equal(c.mantissa, INF)
    bad = ~keep & ~finite
    factor = tf.where(keep, one, tf.where((c.mantissa >= 0) & ~bad, quotient, nan))
    # Too small for float32: apply its root twice, once by dividing, for a graph joins two factors into one again.
    tiny = (factor < TINY) & (c.mantissa > 0)
    # The root of each, for c/n may be subnormal, which is taken for zero, where c·s/n is not.
    root = tf.sqrt(tf.where(tiny, c.mantissa, one)) / tf.sqrt(n) * tf.sqrt(c.scale) / tf.sqrt(norm.scale)
    return (tf.where(tiny, root, factor), tf.where(tiny, one / root, one)), bad


def _is_one(*factors: Array) -> Array:
    """Whether factors change nothing. In graphs of TensorFlow 1, ``==`` compares which tensors these are."""
    return tf.reduce_all(tf.stack([tf.equal(f, 1.0) for f in factors]), 0)


def _times(arrays: Sequence[Array], factor: Array, divisor: Array | None = None) -> list[Array]:
    """New arrays; half precision is multiplied in float32, and rounded once."""
    wide = [a.dtype if a.dtype.is_complex else _accumulator(a) for a in arrays]
    factors = {dtype: tf.cast(factor, dtype) for dtype in set(wide)}
    products = [tf.cast(a, dtype) * factors[dtype] for a, dtype in zip(arrays, wide, strict=True)]
    if divisor is not None:
        products = [p / tf.cast(divisor, p.dtype) for p in products]
    return [tf.cast(p, a.dtype) for p, a in zip(products, arrays, strict=True)]


# Clipping each slice by its own norm ----------------------------------------------------------------------------------


def slice_norms(x: Array, ord: float, axis: tuple[int, ...]) -> Norm:
    """The norms of the slices of x along axis, whose lengths become 1."""
    peak = tf.where(_any_nan(x, axis, True), tf.cast(NAN, tf.float64), _peak(x, axis, True))
    scale = _usable(peak)
    norm = _power_norm(_modulus(x, scale), ord, axis, True)
    return _norm([x], tf.where(tf.math.is_finite(peak), norm, peak), scale)


def scale_slices(x: Array, norm: Norm, limit: Any) -> Array:
    """x with each slice clipped to its limit, given the norms of the slices."""
    factor, divisor = _factors(norm, limit)[0]
    # TensorFlow multiplies subnormal numbers as zeros, so that even a factor of 1 would change them.
    return tf.where(_is_one(factor, divisor), x, _times([x], factor, divisor)[0])


# Clipping by value ----------------------------------------------------------------------------------------------------


def clamp(arrays: Sequence[Array], low: Any, high: Any) -> list[Array]:
    """The arrays with each element moved into [low, high]; NaN stays."""
    return [clamp_within(a, _scalar(low, a.dtype), _scalar(high, a.dtype)) for a in arrays]


def clamp_within(x: Array, low: Array, high: Array) -> Array:
    """x with each element moved between limits of its dtype, which are broadcast to x."""
    # A minimum takes subnormal numbers for zeros, and XLA's may lose NaN: only what lies outside goes through one.
    outside = (x <= low) | (x >= high)
    return tf.where(outside, tf.maximum(tf.minimum(x, high), low), x)
