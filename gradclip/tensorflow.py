"""Drop-ins for the clipping functions of TensorFlow: one changed import moves a training loop over.

They take the same arguments as ``tf.clip_by_norm``, ``tf.clip_by_global_norm``, ``tf.clip_by_value`` and
``tf.linalg.global_norm``, and differ from them in the following.

- **Finite gradients stay right where their squares overflow.** TensorFlow makes NaN of [1e20, 2e20].
- **Accurate norm.** Of half-precision gradients it is float32; TensorFlow's is rounded to their dtype, and is infinite
  for 100000 ones in float16.
- **Mixed dtypes.** One list may hold float16 beside float32. TensorFlow raises InvalidArgumentError.
- **Complex gradients** are measured by their moduli. TensorFlow's clip_by_norm sums the squares of complex numbers.
- **Sparse gradients** count as the dense gradient would: rows of one index are added before they are measured.
  TensorFlow measures and clips the rows as they are listed.
- **Thresholds are checked.** A negative one, or NaN: ValueError; a bool or a string: TypeError. TensorFlow takes a
  negative ``clip_norm`` for 0, or for no limit. 0 makes zeros, of zero gradients too, where TensorFlow makes NaN.
  ``inf`` measures and changes nothing, where it makes NaN. A threshold that only a graph or a GPU knows is not
  waited for: if it is negative or NaN, every element becomes NaN.
- **Where a gradient is not finite**, `clip_by_norm` makes NaN of all of it. TensorFlow makes zeros of the others.
- **The norm that is returned** is float64 if a gradient is float64 or complex128, else float32, ``use_norm`` included.
- **Limits of clip_by_value** are cast to the dtype of floating-point gradients; TensorFlow raises where dtypes differ.
  ``clip_value_min`` > ``clip_value_max`` is refused where their values are known.
- **name** names the scope of the operations in a graph, as in TensorFlow, but no single operation.

On the CPU, TensorFlow takes subnormal numbers for zero (in float32 those below 1.2e-38). So elements that are subnormal
do not count in a norm, and what would be subnormal after it was scaled becomes zero.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from . import rules
from .backends import tensorflow as backend

__all__ = ["clip_by_global_norm", "clip_by_norm", "clip_by_value", "global_norm"]

Tensor = Any  # tf.Tensor, tf.Variable, tf.IndexedSlices or what tf.convert_to_tensor takes


def clip_by_norm(t: Tensor, clip_norm: Any, axes: Any = None, name: str | None = None) -> Tensor:
    """Scale a tensor, or its slices, so that its own norm is at most ``clip_norm``.

    With n the norm and c = ``clip_norm``, a slice is returned as it is where n ≤ c, and as (c/n)·t where n > c. The
    module's docstring lists how this differs from TensorFlow's function.

    Parameters
    ----------
    t : tensor or tf.IndexedSlices
        The gradient, of a floating-point or complex dtype and any shape.
    clip_norm : float or tensor
        The threshold c ≥ 0, in the unit of the gradient: one number, or a tensor that can be broadcast to the norms,
        whose shape is that of ``t`` with a length of 1 along ``axes``.
    axes : int, sequence of int or 1-d tensor, optional
        The axes along which slices lie. By default all of ``t`` is one vector.
    name : str, optional
        The name of the scope in a graph.

    Returns
    -------
    tensor or tf.IndexedSlices
        Of the shape and dtype of ``t``.

    Raises
    ------
    TypeError
        ``t`` has another dtype, or ``clip_norm`` is not a number or cannot be broadcast to the norms.
    ValueError
        ``clip_norm`` is negative or NaN; ``t`` has no such axis; or ``axes`` is
        not known while a graph is built.

    References
    ----------
    ``tf.clip_by_norm``, TensorFlow 2.

    Examples
    --------
    >>> import tensorflow as tf
    >>> print(clip_by_norm(tf.constant([[3.0, 4.0], [0.3, 0.4]]), 1.0, axes=[1]).numpy())
    [[0.6 0.8]
     [0.3 0.4]]
    """
    with tf.name_scope(name or "clip_by_norm"):
        t, axis = _tensor(t), _axes(axes)
        if not _is_number(clip_norm):
            clip_norm = _limit(clip_norm, "clip_norm", tf.float64)
            axis = tuple(range(t.shape.rank)) if axis is None else axis
        return rules.clip_by_norm(t, clip_norm, axis=axis)


def clip_by_global_norm(
    t_list: Sequence[Tensor | None], clip_norm: Any, use_norm: Any = None, name: str | None = None
) -> tuple[list[Tensor | None], Tensor]:
    """Scale all tensors by one factor, so that their global norm is at most ``clip_norm``.

    With n the norm and c = ``clip_norm``, tensors are returned as they are where n ≤ c, and as (c/n)·t where n > c. The
    module's docstring lists how this differs from TensorFlow's function.

    Parameters
    ----------
    t_list : sequence of tensors, tf.IndexedSlices and None
        The gradients, of floating-point or complex dtypes and any shapes. ``None`` (no gradient) stays ``None``.
    clip_norm : float or 0-d tensor
        The threshold c ≥ 0, in the unit of the gradients.
    use_norm : float or 0-d tensor, optional
        The norm n ≥ 0, where it is known already; then none is computed.
    name : str, optional
        The name of the scope in a graph.

    Returns
    -------
    list, 0-d tensor
        The clipped gradients, and their norm before clipping: 0.0 where there are none.

    Raises
    ------
    TypeError
        ``t_list`` is not a sequence; a gradient has another dtype; or ``clip_norm`` is not a number.
    ValueError
        ``clip_norm`` or ``use_norm`` is negative, or ``clip_norm`` is NaN.

    References
    ----------
    ``tf.clip_by_global_norm``, TensorFlow 2; Pascanu, Mikolov and Bengio, ICML 2013, Algorithm 1.

    Examples
    --------
    >>> import tensorflow as tf
    >>> grads, norm = clip_by_global_norm([tf.constant([3.0]), None, tf.constant([4.0])], 1.0)
    >>> print(grads[0].numpy(), grads[1], grads[2].numpy(), float(norm))
    [0.6] None [0.8] 5.0
    """
    with tf.name_scope(name or "clip_by_global_norm"):
        tensors = _tensors(t_list)
        # The empty tensor says that this is TensorFlow, also where there are no others.
        clipped, norm = rules.clip_by_global_norm([*tensors, tf.zeros(0)], clip_norm, norm=use_norm)
        return clipped[:-1], norm


def clip_by_value(t: Tensor, clip_value_min: Any, clip_value_max: Any, name: str | None = None) -> Tensor:
    """Move every element into [clip_value_min, clip_value_max].

    NaN stays NaN, and ±inf becomes the limit of its side. The module's docstring lists how this differs from
    TensorFlow's function.

    Parameters
    ----------
    t : tensor or tf.IndexedSlices
        Of a real floating-point or an integer dtype, and any shape. Integers have integers for limits.
    clip_value_min, clip_value_max : number or tensor
        The limits, in the unit of ``t``; tensors that can be broadcast to the shape of ``t``.
    name : str, optional
        The name of the scope in a graph.

    Returns
    -------
    tensor or tf.IndexedSlices
        Of the shape and dtype of ``t``.

    Raises
    ------
    TypeError
        ``t`` is complex, a bool or a string; or a limit is, or is a float where ``t`` is an integer.
    ValueError
        A limit is NaN or the lower one is above the upper one, where the values are known; a limit cannot be broadcast
        to ``t``; or an interval without 0 would fill a tf.IndexedSlices with values.

    References
    ----------
    ``tf.clip_by_value``, TensorFlow 2.

    Examples
    --------
    >>> import tensorflow as tf
    >>> print(clip_by_value(tf.constant([[-9.0, 0.5], [9.0, 0.5]]), [[-1.0], [1.0]], 2.0).numpy())
    [[-1.   0.5]
     [ 2.   1. ]]
    """
    with tf.name_scope(name or "clip_by_value"):
        t = _tensor(t)
        if isinstance(t, tf.IndexedSlices):
            return rules.clip_by_value(t, (clip_value_min, clip_value_max))
        if not (t.dtype.is_floating or t.dtype.is_integer):
            raise TypeError(f"t must hold real numbers, got dtype {t.dtype.name}")
        low = _limit(clip_value_min, "clip_value_min", t.dtype)
        high = _limit(clip_value_max, "clip_value_max", t.dtype)
        for limit, what in ((low, "clip_value_min"), (high, "clip_value_max")):
            _check_broadcast(limit, t, what)
            if backend.known(limit) and limit.dtype.is_floating and bool(tf.reduce_any(tf.math.is_nan(limit))):
                raise ValueError(f"{what} must not be NaN")
        if backend.known(low) and backend.known(high) and bool(tf.reduce_any(low > high)):
            raise ValueError(f"clip_value_min must be ≤ clip_value_max, got {clip_value_min} and {clip_value_max}")
        return backend.clamp_within(t, low, high)


def global_norm(t_list: Sequence[Tensor | None], name: str | None = None) -> Tensor:
    """The norm of all tensors joined into one vector.

    Parameters
    ----------
    t_list : sequence of tensors, tf.IndexedSlices and None
        As for `clip_by_global_norm`.
    name : str, optional
        The name of the scope in a graph.

    Returns
    -------
    0-d tensor
        As the one that `clip_by_global_norm` returns.

    Raises
    ------
    TypeError
        ``t_list`` is not a sequence, or a tensor has another dtype.

    References
    ----------
    ``tf.linalg.global_norm``, TensorFlow 2.

    Examples
    --------
    >>> import tensorflow as tf
    >>> print(global_norm([tf.constant([3.0, 0.0]), None, tf.constant(4.0)]).numpy())
    5.0
    """
    with tf.name_scope(name or "global_norm"):
        return rules.global_norm([*_tensors(t_list), tf.zeros(0)])


def _tensor(t: Tensor) -> Tensor:
    return t if isinstance(t, tf.IndexedSlices) else tf.convert_to_tensor(t)


def _tensors(t_list: Any) -> list[Tensor | None]:
    if not isinstance(t_list, Sequence) or isinstance(t_list, str):
        raise TypeError(f"t_list must be a sequence of tensors, got a {type(t_list).__name__}")
    return [None if t is None else _tensor(t) for t in t_list]


def _axes(axes: Any) -> tuple[int, ...] | None:
    """The axes as a tuple of integers, None for all."""
    if axes is None:
        return None
    static = tf.get_static_value(axes) if tf.is_tensor(axes) else axes
    if static is None:
        raise ValueError("axes must be known while the graph is built")
    return tuple(int(axis) for axis in np.ravel(static))


def _is_number(limit: Any) -> bool:
    """Whether rules.py takes it: anything but an array with axes."""
    return np.ndim(limit) == 0 if not tf.is_tensor(limit) else limit.shape.rank in (0, None)


def _limit(limit: Any, what: str, dtype: tf.DType) -> Tensor:
    """A limit as a tensor of this dtype, without a detour through float32, in which it would lose digits."""
    if not tf.is_tensor(limit):
        limit = np.asarray(limit)
        if limit.dtype.kind not in "iuf" or (dtype.is_integer and limit.dtype.kind == "f"):
            raise TypeError(f"{what} must hold {'integers' if dtype.is_integer else 'numbers'}, got {limit!r}")
        if dtype.is_integer and np.any((limit < dtype.min) | (limit > dtype.max)):
            raise ValueError(f"{what} must fit {dtype.name}, got {limit}")
        return tf.cast(tf.constant(limit, dtype if dtype.is_integer else tf.float64), dtype)
    if not (limit.dtype.is_floating or limit.dtype.is_integer) or (dtype.is_integer and limit.dtype != dtype):
        raise TypeError(f"{what} must have dtype {dtype.name}, got {limit.dtype.name}")
    return tf.cast(limit, dtype)


def _check_broadcast(limit: Tensor, x: Tensor, what: str) -> None:
    """A limit must not make the result larger than what it limits."""
    try:
        fits = x.shape.is_compatible_with(tf.broadcast_static_shape(limit.shape, x.shape))
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{what} of shape {limit.shape} cannot be broadcast to t, of shape {x.shape}")
