"""The public functions: check the arguments, flatten the tree, call its backend, rebuild the tree."""

from math import isfinite
from typing import Any, NamedTuple

from . import arguments
from .backends import REAL
from .trees import Nested, Tree, weights_of


class Clipped(NamedTuple):
    """The result of `clip_by_global_norm`: the clipped gradients, and their norm before clipping."""

    grads: Any
    norm: Any


class NonFiniteGradientError(FloatingPointError):
    """Raised with ``nonfinite="raise"`` where a gradient holds NaN or infinity."""


def global_norm(grads: Nested, *, ord: float = 2) -> Any:
    """The norm of all gradients joined into one vector.

    Parameters
    ----------
    grads : array or tree of arrays
        One array, or any nesting of list, tuple, named tuple and dict of arrays of one framework, of any shapes and of
        dtype float16, bfloat16, float32, float64, complex64 or complex128. ``None`` (no gradient) is passed over.
    ord : float, default 2
        The order p of the norm (Σ|x|ᵖ)¹ᐟᵖ: 1, 2, ``inf`` (the largest absolute value) or any p > 0.

    Returns
    -------
    0-d array
        Of the arrays' framework: float64 if a gradient is float64 or complex128, else float32. 0.0 without arrays.

    Raises
    ------
    TypeError
        A leaf is no array, has another dtype, or belongs to another framework than the first.
    ValueError
        ``ord`` is not a number above 0.

    Examples
    --------
    >>> import numpy as np
    >>> print(global_norm({"w": np.array([3.0, 0.0]), "b": np.array([4.0])}))
    5.0
    """
    tree = Tree(grads)
    return tree.backend.measure(tree.arrays, arguments.order(ord)).value


def clip_by_global_norm(
    grads: Nested, max_norm: Any, *, ord: float = 2, norm: Any = None, nonfinite: str = "nan"
) -> Clipped:
    """Scale all gradients by one factor, so that their global norm is at most ``max_norm``.

    With n the global norm and c the threshold, gradients are returned as they are where n ≤ c, and as (c/n)·g where
    n > c. The direction of the joined gradient never changes.

    Parameters
    ----------
    grads : array or tree of arrays
        As for `global_norm`.
    max_norm : float or 0-d array
        The threshold c ≥ 0, in the unit of the gradients. ``inf`` measures and changes nothing. A 0-d array of the
        gradients' framework that lies on a GPU, or is traced by a compiler, is not read: nothing waits for it, and if
        it is negative or NaN, every element becomes NaN.
    ord : float, default 2
        The order of the norm.
    norm : float or 0-d array, optional
        The norm, where it is known already (of a sharded gradient, say); then none is computed.
    nonfinite : {"nan", "zero", "keep", "raise"}
        What becomes of gradients whose norm is not finite because an element is not: every element NaN (such a norm
        has no direction to keep), every element 0, no change, or `NonFiniteGradientError`.

    Returns
    -------
    Clipped
        ``grads``, new arrays of the same structure, shapes and dtypes, and ``norm``, the norm *before* clipping.

    Raises
    ------
    TypeError
        As for `global_norm`; or ``max_norm`` is not a number.
    ValueError
        ``max_norm`` or ``norm`` is negative, ``max_norm`` is NaN, ``ord`` or ``nonfinite`` is none of the above, or
        ``nonfinite="raise"`` is used while the gradients are traced by a compiler.
    NonFiniteGradientError
        With ``nonfinite="raise"``; it names the leaves.

    References
    ----------
    Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> grads, norm = clip_by_global_norm([np.array([3.0]), np.array([4.0])], 1.0)
    >>> print(grads, norm)
    [array([0.6]), array([0.8])] 5.0
    """
    tree = Tree(grads, beside=(max_norm, norm))
    max_norm = arguments.threshold(max_norm, tree.backend)
    measured = _measure(tree, ord, norm, nonfinite)
    return Clipped(tree.rebuild(tree.backend.scale(tree.arrays, measured, max_norm, nonfinite)), measured.value)


def clip_by_global_norm_(
    grads: Nested, max_norm: Any, *, ord: float = 2, norm: Any = None, nonfinite: str = "nan"
) -> Any:
    """`clip_by_global_norm` in place, for NumPy and PyTorch: all or nothing.

    On the CPU nothing is written where n ≤ c. The same array listed twice is counted and scaled once.

    Parameters
    ----------
    grads, max_norm, ord, norm, nonfinite
        As for `clip_by_global_norm`.

    Returns
    -------
    0-d array
        The norm before clipping.

    Raises
    ------
    TypeError, ValueError, NonFiniteGradientError
        As for `clip_by_global_norm`, and where an array cannot be written to, or is a parameter instead of its
        gradient. Nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([3.0, 4.0])
    >>> print(clip_by_global_norm_(g, 1.0), g)
    5.0 [0.6 0.8]
    """
    tree = Tree(grads, in_place_of="clip_by_global_norm", beside=(max_norm, norm))
    max_norm = arguments.threshold(max_norm, tree.backend)
    with tree.writing():
        measured = _measure(tree, ord, norm, nonfinite)
        tree.backend.scale_(tree.arrays, measured, max_norm, nonfinite)
    return measured.value


def clip_by_norm(grads: Nested, max_norm: Any, *, ord: float = 2, axis: int | tuple[int, ...] | None = None) -> Nested:
    """Scale every array by itself, so that its own norm is at most ``max_norm``.

    Each array keeps its direction; the joined gradient does not. This is what ``clipnorm`` does in Keras.

    Parameters
    ----------
    grads : array or tree of arrays
        As for `global_norm`.
    max_norm : float or 0-d array
        The threshold, as for `clip_by_global_norm`.
    ord : float, default 2
        The order of the norm.
    axis : int or tuple of int, optional
        Instead of whole arrays, clip their slices along these axes, each by its own norm, as ``axes`` in
        ``tf.clip_by_norm``.

    Returns
    -------
    array or tree of arrays
        New arrays of the same structure, shapes and dtypes. An array (or slice) whose norm is not finite becomes NaN,
        and does not touch its neighbours.

    Raises
    ------
    TypeError, ValueError
        As for `clip_by_global_norm`; or an array has no such axis.

    References
    ----------
    ``tf.clip_by_norm``, TensorFlow 2.

    Examples
    --------
    >>> import numpy as np
    >>> print(clip_by_norm([np.array([3.0, 4.0]), np.array([0.5])], 1.0))
    [array([0.6, 0.8]), array([0.5])]
    >>> print(clip_by_norm(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0, axis=1))
    [[0.6 0.8]
     [0.3 0.4]]
    """
    tree = Tree(grads, beside=(max_norm,))
    clipped = _each_by_its_norm(tree, max_norm, ord, axis, tree.backend.scale, tree.backend.scale_slices)
    return tree.rebuild(clipped)


def clip_by_norm_(grads: Nested, max_norm: Any, *, ord: float = 2, axis: int | tuple[int, ...] | None = None) -> None:
    """`clip_by_norm` in place, for NumPy and PyTorch: all or nothing.

    Parameters
    ----------
    grads, max_norm, ord, axis
        As for `clip_by_norm`.

    Raises
    ------
    TypeError, ValueError
        As for `clip_by_norm` and `clip_by_global_norm_`.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([3.0, 4.0])
    >>> clip_by_norm_(g, 1.0)
    >>> print(g)
    [0.6 0.8]
    """
    tree = Tree(grads, in_place_of="clip_by_norm", beside=(max_norm,))
    with tree.writing():
        _each_by_its_norm(tree, max_norm, ord, axis, tree.backend.scale_, tree.backend.scale_slices_)


def clip_by_value(grads: Nested, limit: Any) -> Nested:
    """Move every element into an interval.

    Elements are clipped one by one, so the gradient turns: this is a box, not a ball.

    Parameters
    ----------
    grads : array or tree of arrays
        As for `global_norm`, complex dtypes excepted.
    limit : float, 0-d array, or a pair of them
        The interval [-limit, limit], or [low, high] for a pair.

    Returns
    -------
    array or tree of arrays
        New arrays of the same structure, shapes and dtypes. NaN stays NaN; ±inf becomes the limit of its side.

    Raises
    ------
    TypeError
        As for `global_norm`; or a gradient is complex, or a limit is not a number.
    ValueError
        A single limit is negative, a limit is NaN, or low > high.

    References
    ----------
    Mikolov, *Statistical language models based on neural networks*, PhD thesis, Brno 2012.

    Examples
    --------
    >>> import numpy as np
    >>> print(clip_by_value(np.array([3.0, -4.0, 0.5]), 1.0))
    [ 1.  -1.   0.5]
    >>> print(clip_by_value(np.array([3.0, -4.0, 0.5]), (-2.0, 1.0)))
    [ 1.  -2.   0.5]
    """
    tree = Tree(grads, taken=REAL, beside=limit if isinstance(limit, (tuple, list)) else (limit,))
    low, high = arguments.limits(limit, tree)
    return tree.rebuild([tree.backend.clamp(a, low, high) for a in tree.arrays])


def clip_by_value_(grads: Nested, limit: Any) -> None:
    """`clip_by_value` in place, for NumPy and PyTorch: all or nothing.

    Parameters
    ----------
    grads, limit
        As for `clip_by_value`.

    Raises
    ------
    TypeError, ValueError
        As for `clip_by_value` and `clip_by_global_norm_`.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([3.0, -4.0, 0.5])
    >>> clip_by_value_(g, 1.0)
    >>> print(g)
    [ 1.  -1.   0.5]
    """
    beside = limit if isinstance(limit, (tuple, list)) else (limit,)
    tree = Tree(grads, taken=REAL, in_place_of="clip_by_value", beside=beside)
    low, high = arguments.limits(limit, tree)
    with tree.writing():
        for a in tree.arrays:
            tree.backend.clamp_(a, low, high)


def clip_adaptive(
    grads: Nested, params: Nested, clip_factor: float = 0.01, *, eps: float = 1e-3, unit_axis: int | None = None
) -> Nested:
    """Scale each unit's gradient so that its norm is at most ``clip_factor`` times the norm of the unit's weights.

    Adaptive gradient clipping (AGC): with G and W the gradient and the weights of one unit (the weights that lead to
    one output), G becomes r·max(‖W‖, eps)·G/‖G‖ where ‖G‖ > r·max(‖W‖, eps), and stays as it is elsewhere.

    Parameters
    ----------
    grads : array or tree of arrays
        As for `global_norm`.
    params : array or tree of arrays
        The weights, of the same structure and shapes.
    clip_factor : float, default 0.01
        The factor r ≥ 0, without a unit.
    eps : float, default 1e-3
        The least norm that weights are taken to have, so that weights of zero can be trained.
    unit_axis : int, optional
        The axis that counts the units. By default the framework's own: the first in PyTorch, whose weights have the
        shape (out, in, …), the last in NumPy, TensorFlow and JAX, where it is (…, in, out). Arrays with fewer than two
        axes are one unit.

    Returns
    -------
    array or tree of arrays
        New arrays of the same structure, shapes and dtypes as ``grads``. A unit whose norm is not finite becomes NaN.

    Raises
    ------
    TypeError
        As for `global_norm`, for either tree; or a factor is not a number.
    ValueError
        ``clip_factor`` or ``eps`` is negative or NaN; the trees differ in structure or in a shape; or an array has no
        such axis.

    References
    ----------
    Brock, De, Smith and Simonyan, *High-performance large-scale image recognition without normalization*, ICML 2021,
    equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> weights = np.array([[3.0, 0.3], [4.0, 0.4]])  # two units, of norms 5 and 0.5
    >>> print(clip_adaptive(np.array([[0.3, 0.3], [0.4, 0.4]]), weights, clip_factor=0.2))
    [[0.3  0.06]
     [0.4  0.08]]
    """
    tree = Tree(grads, beside=(clip_factor, eps))
    backend = tree.backend
    clipped = _each_by_its_weights(tree, params, clip_factor, eps, unit_axis, backend.scale_slices)
    return tree.rebuild(clipped)


def clip_adaptive_(
    grads: Nested, params: Nested, clip_factor: float = 0.01, *, eps: float = 1e-3, unit_axis: int | None = None
) -> None:
    """`clip_adaptive` in place, for NumPy and PyTorch: all or nothing.

    Parameters
    ----------
    grads, params, clip_factor, eps, unit_axis
        As for `clip_adaptive`; only ``grads`` is written to.

    Raises
    ------
    TypeError, ValueError
        As for `clip_adaptive` and `clip_by_global_norm_`.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([3.0, 4.0])
    >>> clip_adaptive_(g, np.array([0.0, 10.0]), clip_factor=0.1)
    >>> print(g)
    [0.6 0.8]
    """
    tree = Tree(grads, in_place_of="clip_adaptive", beside=(clip_factor, eps))
    with tree.writing():
        _each_by_its_weights(tree, params, clip_factor, eps, unit_axis, tree.backend.scale_slices_)


# What the public functions share --------------------------------------------------------------------------------------


def _measure(tree: Tree, ord: float, norm: Any, nonfinite: str) -> Any:
    """The norm of a tree, measured or given; raises if that was asked for and it is not finite."""
    backend = tree.backend
    ord = arguments.order(ord)
    if arguments.policy(nonfinite) == "raise" and backend.is_traced(tree.arrays):
        raise ValueError(
            'nonfinite="raise" cannot look at values while they are traced by a compiler; use "nan", "zero" or "keep"'
        )
    if norm is None:
        measured = backend.measure(tree.arrays, ord)
    else:
        number = arguments.value_of(norm, backend, "norm")
        if number is not None and number < 0:  # NaN may be a norm
            raise ValueError(f"norm must be ≥ 0, got {number}")
        measured = backend.given(norm, tree.arrays)
    # The exact norm of finite gradients is finite, though it may not fit the dtype of the returned one.
    if nonfinite == "raise" and not isfinite(float(measured.mantissa)):
        names = [tree.name(i) for i, array in enumerate(tree.arrays) if not backend.all_finite(array)]
        raise NonFiniteGradientError(f"not finite: {', '.join(names) or 'the given norm'}; nothing has been clipped")
    return measured


def _each_by_its_norm(tree: Tree, max_norm: Any, ord: float, axis: Any, scale: Any, scale_slices: Any) -> list[Any]:
    backend, max_norm, ord = tree.backend, arguments.threshold(max_norm, tree.backend), arguments.order(ord)
    if axis is None:
        scaled = [scale([a], backend.measure([a], ord), max_norm, "nan") for a in tree.arrays]
        return [only for result in scaled for only in result or ()]
    for i, (array, _) in tree.sparse.items():
        if backend.sparse_axes(array) > 1:
            raise ValueError(f"{tree.name(i)} is sparse along several axes; clip it without axis")
    axes = [arguments.axes(axis, tree, i) for i in range(len(tree.arrays))]
    pairs = zip(tree.arrays, axes, strict=True)
    return [scale_slices(a, backend.slice_norms(a, ord, its), max_norm) for a, its in pairs]


def _each_by_its_weights(
    tree: Tree, params: Nested, clip_factor: Any, eps: Any, unit_axis: Any, scale_slices: Any
) -> list[Any]:
    backend = tree.backend
    clip_factor = arguments.nonnegative(
        clip_factor, backend, "clip_factor", "a negative factor would flip the update's sign"
    )
    eps = arguments.nonnegative(eps, backend, "eps", "it stands for a norm")
    limits = []
    for i, (array, weights) in enumerate(zip(tree.arrays, weights_of(tree, params), strict=True)):
        ndim = len(weights.shape)
        (unit,) = (
            arguments.axes(backend.UNIT_AXIS if unit_axis is None else unit_axis, tree, i) if ndim > 1 else (None,)
        )
        axes = tuple(axis for axis in range(ndim) if axis != unit)
        norms = backend.slice_norms(weights, 2, axes)
        if hasattr(backend, "unit_limits"):
            limit = backend.unit_limits([norms], clip_factor, eps)[0]
            if i in tree.sparse and unit == 0:
                limit = type(limit)(*(backend.rows_of(part, tree.sparse[i][1]) for part in limit))
            limits.append((array, axes, limit))
            continue
        limit = clip_factor * backend.at_least(norms.value, eps)
        if i in tree.sparse and unit == 0:
            limit = backend.rows_of(limit, tree.sparse[i][1])
        limits.append((array, axes, limit))
    return [scale_slices(array, backend.slice_norms(array, 2, axes), limit) for array, axes, limit in limits]
