"""The public functions: check the arguments, flatten the tree, call its backend, rebuild the tree."""

from math import inf, isfinite, prod
from typing import Any, NamedTuple

from . import arguments
from .backends import REAL, Norm, backend_of
from .trees import Nested, Tree, are_one, weights_of


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
        A leaf is no array, has another dtype (complex32 is one), or belongs to another framework than the first; or it
        is of a subclass that changes what arrays do, such as a masked array or tensor, a nested tensor or np.matrix.
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


def leaf_norms(grads: Nested, *, ord: float = 2) -> Nested:
    """The norm of each array by itself.

    Parameters
    ----------
    grads, ord
        As for `global_norm`.

    Returns
    -------
    0-d array or tree of 0-d arrays
        Of the structure of ``grads``. Each is float64 if its array is float64 or complex128, else float32.

    Raises
    ------
    TypeError, ValueError
        As for `global_norm`.

    See Also
    --------
    clip_by_norm : clips each array by this norm.

    Examples
    --------
    >>> import numpy as np
    >>> norms = leaf_norms({"w": np.array([3.0, 4.0]), "b": np.array([0.5])})
    >>> print(norms["w"], norms["b"])
    5.0 0.5
    """
    tree = Tree(grads)
    norms = tree.backend.measure_each(tree.arrays, arguments.order(ord), [None] * len(tree.arrays))
    return tree.rebuild([norm.value for norm in norms], dense=True)


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
        As for `global_norm`; or ``max_norm`` is not a number: a bool, a string, a Decimal or a complex number.
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

    On the CPU nothing is written where n ≤ c. Arrays that are the same elements of memory, such as tied weights or a
    view of the whole, are counted and scaled once. All is calculated and checked before the first array is written to.

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
        As for `clip_by_global_norm`, and where an array cannot be written to, is a parameter instead of its gradient,
        or shares a part of its memory with another one. Nothing has been written then.

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
    max_norm : float, array, or tree of them
        The threshold, as for `clip_by_global_norm`, for all arrays; or a list, tuple or dict of thresholds, of the
        structure of ``grads``. With ``axis``, a threshold may also be an array of the gradients' framework that
        broadcasts to the norms of the slices, whose shape is that of the gradient with a 1 for each of the axes.
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
    >>> print(clip_by_norm({"w": np.array([3.0, 4.0]), "b": np.array([0.5])}, {"w": 1.0, "b": 0.1}))
    {'w': array([0.6, 0.8]), 'b': array([0.1])}
    """
    return clip_and_measure_each(grads, max_norm, ord, axis)[0]


def clip_and_measure_each(grads: Nested, max_norm: Any, ord: float, axis: Any) -> tuple[Nested, Nested]:
    """What `clip_by_norm` returns, and the norms before clipping: a tree of them, or of the norms of the slices."""
    tree = Tree(grads, beside=arguments.leaves(max_norm))
    norms, limits = _each_by_its_norm(tree, max_norm, ord, axis)
    clipped = tree.backend.scale_each(tree.arrays, norms, limits)
    return tree.rebuild(clipped), tree.rebuild([norm.value for norm in norms], dense=True)


def clip_by_norm_(grads: Nested, max_norm: Any, *, ord: float = 2, axis: int | tuple[int, ...] | None = None) -> None:
    """`clip_by_norm` in place, for NumPy and PyTorch: all or nothing.

    Parameters
    ----------
    grads, max_norm, ord, axis
        As for `clip_by_norm`.

    Raises
    ------
    TypeError, ValueError
        As for `clip_by_norm` and `clip_by_global_norm_`; or an array is listed twice, with different thresholds.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([3.0, 4.0])
    >>> clip_by_norm_(g, 1.0)
    >>> print(g)
    [0.6 0.8]
    """
    tree = Tree(grads, in_place_of="clip_by_norm", same_shape=axis is not None, beside=arguments.leaves(max_norm))
    with tree.writing():
        tree.backend.scale_each_(tree.arrays, *_each_by_its_norm(tree, max_norm, ord, axis))


def clip_by_block_rms(grads: Nested, threshold: Any) -> Nested:
    """Scale every array by itself, so that the root mean square (RMS) of its elements is at most ``threshold``.

    Adafactor clips its updates like this, which are divided by an estimate of their size, so that 1 is their usual RMS.
    An array of N elements is clipped by its 2-norm to threshold·√N.

    Parameters
    ----------
    grads : array or tree of arrays
        As for `global_norm`.
    threshold : float or 0-d array
        The limit d ≥ 0 on the RMS, in the unit of the gradients. ``inf`` changes nothing.

    Returns
    -------
    array or tree of arrays
        New arrays of the same structure, shapes and dtypes. An array whose norm is not finite becomes NaN.

    Raises
    ------
    TypeError, ValueError
        As for `clip_by_norm`.

    See Also
    --------
    clip_by_norm : the same with a limit on the norm.

    References
    ----------
    Shazeer and Stern, *Adafactor: adaptive learning rates with sublinear memory cost*, ICML 2018, section 6;
    ``optax.clip_by_block_rms``.

    Examples
    --------
    >>> import numpy as np
    >>> print(clip_by_block_rms([np.array([3.0, -3.0, 3.0, 3.0]), np.array([0.5])], 1.0))
    [array([ 1., -1.,  1.,  1.]), array([0.5])]
    """
    tree = Tree(grads, beside=(threshold,))
    return tree.rebuild(tree.backend.scale_each(tree.arrays, *_each_by_its_rms(tree, threshold)))


def clip_by_block_rms_(grads: Nested, threshold: Any) -> None:
    """`clip_by_block_rms` in place, for NumPy and PyTorch: all or nothing.

    Parameters
    ----------
    grads, threshold
        As for `clip_by_block_rms`.

    Raises
    ------
    TypeError, ValueError
        As for `clip_by_block_rms` and `clip_by_global_norm_`.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([3.0, -3.0, 3.0, 3.0])
    >>> clip_by_block_rms_(g, 1.0)
    >>> print(g)
    [ 1. -1.  1.  1.]
    """
    tree = Tree(grads, in_place_of="clip_by_block_rms", beside=(threshold,))
    with tree.writing():
        tree.backend.scale_each_(tree.arrays, *_each_by_its_rms(tree, threshold))


def clip_per_example(grads: Nested, max_norm: Any, *, ord: float = 2) -> Clipped:
    """Scale the gradient of each example by itself, so that its norm over all arrays is at most ``max_norm``.

    The first step of differentially private training (DP-SGD). Adding up the clipped gradients, noise, and the account
    of the privacy that is spent belong to a library made for it, such as Opacus.

    Parameters
    ----------
    grads : array or tree of arrays
        As for `global_norm`, but each array holds one gradient for each of B examples: its shape is (B, …), as
        ``torch.func.vmap`` or ``jax.vmap`` of a gradient function gives it.
    max_norm : float or 0-d array
        The threshold c ≥ 0, as for `clip_by_global_norm`, for each example.
    ord : float, default 2
        The order of the norm.

    Returns
    -------
    Clipped
        ``grads``, new arrays of the same structure, shapes and dtypes, and ``norm``, of shape (B,), the norm of each
        example before clipping. The gradient of an example whose norm is not finite becomes NaN; the others do not.

    Raises
    ------
    TypeError
        As for `clip_by_global_norm`.
    ValueError
        As for `clip_by_global_norm`; or there is no array, one has no axis or is sparse, or they differ in length.

    References
    ----------
    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, *Deep learning with differential privacy*, CCS 2016,
    algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> weights, biases = np.array([[3.0, 0.0], [0.3, 0.0]]), np.array([4.0, 0.4])  # of two examples
    >>> (weights, biases), norm = clip_per_example([weights, biases], 1.0)
    >>> print(norm, biases)
    [5.  0.5] [0.8 0.4]

    In PyTorch, for a loss of one example:

    >>> import torch
    >>> def loss(w, x):
    ...     return (w @ x) ** 2 / 2
    >>> w, batch = torch.tensor([1.0, 1.0]), torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    >>> per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, batch)
    >>> clipped, norm = clip_per_example(per_example, 1.0)
    >>> print(norm, clipped.sum(0))
    tensor([35.,  1.]) tensor([1.6000, 0.8000])
    """
    tree = Tree(grads, beside=(max_norm,))
    backend, max_norm, ord = tree.backend, arguments.threshold(max_norm, tree.backend), arguments.order(ord)
    ndims = [len(array.shape) for array in tree.arrays]
    if not ndims or tree.sparse or 0 in ndims:
        raise ValueError("each gradient must be a dense array with a first axis that counts the examples")
    for i, array in enumerate(tree.arrays):
        if array.shape[0] != tree.arrays[0].shape[0]:
            raise ValueError(
                f"{tree.name(i)} holds {array.shape[0]} examples, {tree.name(0)} holds {tree.arrays[0].shape[0]}"
            )
    norms = backend.measure_each(tree.arrays, ord, [tuple(range(1, ndim)) for ndim in ndims])
    norm = backend.join([Norm(*(backend.reshape(x, (-1,)) for x in each)) for each in norms], ord)
    each = [Norm(*(backend.reshape(x, (-1, *(ndim - 1) * (1,))) for x in norm)) for ndim in ndims]
    return Clipped(tree.rebuild(backend.scale_each(tree.arrays, each, [max_norm] * len(ndims))), norm.value)


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
        A single limit is negative, a limit is NaN, low > high, or a gradient is sparse while 0 is not in it.

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
    tree = Tree(grads, taken=REAL, beside=arguments.leaves(limit))
    low, high = arguments.limits(limit, tree)
    return tree.rebuild(tree.backend.clamp(tree.arrays, low, high))


def clip_by_value_(grads: Nested, limit: Any) -> None:
    """`clip_by_value` in place, for NumPy and PyTorch: all or nothing.

    Parameters
    ----------
    grads, limit
        As for `clip_by_value`.

    Raises
    ------
    TypeError, ValueError
        As for `clip_by_value` and `clip_by_global_norm_`; or a tensor is listed beside its lazily negated view, with an
        interval that is not symmetric.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([3.0, -4.0, 0.5])
    >>> clip_by_value_(g, 1.0)
    >>> print(g)
    [ 1.  -1.   0.5]
    """
    tree = Tree(grads, taken=REAL, in_place_of="clip_by_value", beside=arguments.leaves(limit))
    low, high = arguments.limits(limit, tree)
    tree.refuse_again(lambda i, j: _intervals_differ(tree, i, j, low, high))
    with tree.writing():
        tree.backend.clamp_(tree.arrays, low, high)


def clip_adaptive(
    grads: Nested,
    params: Nested,
    clip_factor: float = 0.01,
    *,
    eps: float = 1e-3,
    ord: float = 2,
    unit_axis: int | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> Nested:
    """Scale each unit's gradient so that its norm is at most ``clip_factor`` times the norm of the unit's weights.

    Adaptive gradient clipping (AGC): with G and W the gradient and the weights of one unit (the weights that lead to
    one output), G becomes r·max(‖W‖, eps)·G/‖G‖ where ‖G‖ > r·max(‖W‖, eps), and stays as it is elsewhere. The
    limits are constants: no derivative goes through the weights.

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
    ord : float, default 2
        The order of both norms.
    unit_axis : int, optional
        The axis that counts the units. By default the framework's own: the first in PyTorch, whose weights have the
        shape (out, in, …), the last in NumPy, TensorFlow and JAX, where it is (…, in, out). Arrays with fewer than two
        axes are one unit.
    axis : int or tuple of int, optional
        Instead of ``unit_axis``, the axes that the norm of a unit runs over: (0, 1, 2) makes a unit of each kernel of
        shape (height, width, in) in an array (height, width, in, heads, out).

    Returns
    -------
    array or tree of arrays
        New arrays of the same structure, shapes and dtypes as ``grads``. A unit whose norm is not finite becomes NaN.

    Raises
    ------
    TypeError
        As for `global_norm`, for either tree; or a factor is not a number.
    ValueError
        ``clip_factor`` or ``eps`` is negative or NaN; the trees differ in structure or in a shape; an array has no such
        axis; or both ``unit_axis`` and ``axis`` are given.

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
    norms, limits = _each_by_its_weights(tree, params, clip_factor, eps, ord, unit_axis, axis)
    return tree.rebuild(tree.backend.scale_each(tree.arrays, norms, limits))


def clip_adaptive_(
    grads: Nested,
    params: Nested,
    clip_factor: float = 0.01,
    *,
    eps: float = 1e-3,
    ord: float = 2,
    unit_axis: int | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> None:
    """`clip_adaptive` in place, for NumPy and PyTorch: all or nothing.

    Parameters
    ----------
    grads, params, clip_factor, eps, ord, unit_axis, axis
        As for `clip_adaptive`; only ``grads`` is written to.

    Raises
    ------
    TypeError, ValueError
        As for `clip_adaptive` and `clip_by_global_norm_`; or a gradient is listed twice, with different weights.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([3.0, 4.0])
    >>> clip_adaptive_(g, np.array([0.0, 10.0]), clip_factor=0.1)
    >>> print(g)
    [0.6 0.8]
    """
    tree = Tree(grads, in_place_of="clip_adaptive", same_shape=True, beside=(clip_factor, eps))
    with tree.writing():
        norms, limits = _each_by_its_weights(tree, params, clip_factor, eps, ord, unit_axis, axis)
        tree.backend.scale_each_(tree.arrays, norms, limits)


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
        arguments.norm(norm, backend)
        measured = backend.given(
            arguments.array_of(norm, backend) if backend_of(norm) is backend else norm, tree.arrays
        )
    # The exact norm of finite gradients is finite, though it may not fit the dtype of the returned one.
    if nonfinite == "raise" and not isfinite(float(measured.mantissa)):
        names = [tree.name(i) for i, array in enumerate(tree.arrays) if not backend.all_finite(array)]
        raise NonFiniteGradientError(f"not finite: {', '.join(names) or 'the given norm'}; nothing has been clipped")
    return measured


def _intervals_differ(tree: Tree, i: int, j: int, low: Any, high: Any) -> str:
    """How the intervals of two arrays of one memory differ: a lazily negated array holds there what it is not."""
    negated = [tree.backend.is_negated(tree.listed[place]) for place in (i, j)]
    return "" if negated[0] == negated[1] or are_one(low, -high) else "one is the other negated, and low is not -high"


def _each_by_its_norm(tree: Tree, max_norm: Any, ord: float, axis: Any) -> tuple[list[Norm], list[Any]]:
    """The norm of each array, or those of its slices, and the limits on them."""
    ord = arguments.order(ord)
    for i, (array, _) in tree.sparse.items() if axis is not None else ():
        if tree.backend.sparse_axes(array) > 1:
            raise ValueError(f"{tree.name(i)} is sparse along several axes; clip it without axis")
    axes = [None if axis is None else arguments.axes(axis, tree, i) for i in range(len(tree.arrays))]
    limits = arguments.thresholds(max_norm, tree, axes)
    return tree.backend.measure_each(tree.arrays, ord, axes), limits


def _each_by_its_rms(tree: Tree, threshold: Any) -> tuple[list[Norm], list[Any]]:
    """The norm of each array, and the limit on it: that of an array of as many elements that have this RMS."""
    threshold = arguments.nonnegative(threshold, tree.backend, "threshold", arguments.NEGATIVE)
    roots = []
    for i, array in enumerate(tree.arrays):
        shape = (tree.sparse[i][0] if i in tree.sparse else array).shape
        if getattr(shape, "rank", 0) is None or None in tuple(shape):
            raise ValueError(f"{tree.name(i)} has a shape that is not known here: tf.ensure_shape sets it")
        roots.append(prod(tuple(shape)) ** 0.5)
    norms, limits = tree.backend.measure_each(tree.arrays, 2, [None] * len(roots)), [threshold * r for r in roots]
    if isinstance(threshold, float) and threshold < inf and inf in limits:  # compare what does fit
        per_root = [(n, max(r, 1.0)) for n, r in zip(norms, roots, strict=True)]
        return [Norm(n.value / r, n.mantissa / r, n.scale) for n, r in per_root], [threshold] * len(roots)
    return norms, limits


def _each_by_its_weights(
    tree: Tree, params: Nested, clip_factor: Any, eps: Any, ord: float, unit_axis: Any, axis: Any
) -> tuple[list[Norm], list[Norm]]:
    """The norms of the gradients of each array's units, and the limits that their weights set."""
    backend, ord = tree.backend, arguments.order(ord)
    clip_factor = arguments.nonnegative(
        clip_factor, backend, "clip_factor", "a negative factor would flip the update's sign"
    )
    eps = arguments.nonnegative(eps, backend, "eps", "it stands for a norm")
    weights = [backend.constant(w) for w in weights_of(tree, params)]
    axes: list[Any] = [arguments.unit_axes(unit_axis, axis, tree, i, len(w.shape)) for i, w in enumerate(weights)]
    limits = backend.unit_limits(backend.measure_each(weights, ord, axes), clip_factor, eps)
    for i, (_, coalesced) in tree.sparse.items():
        # Where each row is a unit, or holds several, a sparse gradient has the units of some rows.
        if axes[i] is not None and 0 not in axes[i]:
            limits[i] = Norm(*(backend.rows_of(x, coalesced) for x in limits[i]))
    return backend.measure_each(tree.arrays, ord, axes), limits
