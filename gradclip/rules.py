"""The public functions: check the arguments, flatten the tree, find the backend, call it, rebuild the tree."""

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence, ValuesView
from math import isfinite, isnan
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

REAL = ("float16", "bfloat16", "float32", "float64")
TAKEN = (*REAL, "complex64", "complex128")
NONFINITE = ("nan", "zero", "keep", "raise")

Tree = Any  # one array, or any nesting of list, tuple, named tuple and dict of arrays and None
Backend = Any  # one of the modules of gradclip.backends


class Clipped(NamedTuple):
    """The result of `clip_by_global_norm`: the clipped gradients, and their norm before clipping."""

    grads: Any
    norm: Any


class NonFiniteGradientError(FloatingPointError):
    """Raised with ``nonfinite="raise"`` where a gradient holds NaN or infinity."""


def global_norm(grads: Tree, *, ord: float = 2) -> Any:
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
    tree = _Tree(grads)
    return tree.backend.measure(tree.arrays, _order(ord)).value


def clip_by_global_norm(
    grads: Tree, max_norm: Any, *, ord: float = 2, norm: Any = None, nonfinite: str = "nan"
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
    tree = _Tree(grads, beside=(max_norm, norm))
    max_norm = _threshold(max_norm, tree.backend)
    measured = _measure(tree, ord, norm, nonfinite)
    return Clipped(tree.rebuild(tree.backend.scale(tree.arrays, measured, max_norm, nonfinite)), measured.value)


def clip_by_global_norm_(
    grads: Tree, max_norm: Any, *, ord: float = 2, norm: Any = None, nonfinite: str = "nan"
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
    tree = _Tree(grads, in_place_of="clip_by_global_norm", beside=(max_norm, norm))
    max_norm = _threshold(max_norm, tree.backend)
    with tree.writing():
        measured = _measure(tree, ord, norm, nonfinite)
        tree.backend.scale_(tree.arrays, measured, max_norm, nonfinite)
    return measured.value


def clip_by_norm(grads: Tree, max_norm: Any, *, ord: float = 2, axis: int | tuple[int, ...] | None = None) -> Tree:
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
    tree = _Tree(grads, beside=(max_norm,))
    clipped = _each_by_its_norm(tree, max_norm, ord, axis, tree.backend.scale, tree.backend.scale_slices)
    return tree.rebuild(clipped)


def clip_by_norm_(grads: Tree, max_norm: Any, *, ord: float = 2, axis: int | tuple[int, ...] | None = None) -> None:
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
    tree = _Tree(grads, in_place_of="clip_by_norm", beside=(max_norm,))
    with tree.writing():
        _each_by_its_norm(tree, max_norm, ord, axis, tree.backend.scale_, tree.backend.scale_slices_)


def clip_by_value(grads: Tree, limit: Any) -> Tree:
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
    tree = _Tree(grads, taken=REAL, beside=limit if isinstance(limit, (tuple, list)) else (limit,))
    low, high = _limits(limit, tree)
    return tree.rebuild([tree.backend.clamp(a, low, high) for a in tree.arrays])


def clip_by_value_(grads: Tree, limit: Any) -> None:
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
    tree = _Tree(grads, taken=REAL, in_place_of="clip_by_value", beside=beside)
    low, high = _limits(limit, tree)
    with tree.writing():
        for a in tree.arrays:
            tree.backend.clamp_(a, low, high)


def clip_adaptive(
    grads: Tree, params: Tree, clip_factor: float = 0.01, *, eps: float = 1e-3, unit_axis: int | None = None
) -> Tree:
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
    tree = _Tree(grads, beside=(clip_factor, eps))
    backend = tree.backend
    clipped = _each_by_its_weights(tree, params, clip_factor, eps, unit_axis, backend.scale_slices)
    return tree.rebuild(clipped)


def clip_adaptive_(
    grads: Tree, params: Tree, clip_factor: float = 0.01, *, eps: float = 1e-3, unit_axis: int | None = None
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
    tree = _Tree(grads, in_place_of="clip_adaptive", beside=(clip_factor, eps))
    with tree.writing():
        _each_by_its_weights(tree, params, clip_factor, eps, unit_axis, tree.backend.scale_slices_)


# Trees ----------------------------------------------------------------------------------------------------------------


class _Tree:
    """The arrays of a tree, checked, with their backend and what is needed to put the tree together again.

    Of a sparse array, ``arrays`` holds the values, those of repeated indices summed. A tree without arrays belongs to
    the framework of the arguments ``beside`` it.
    """

    def __init__(
        self, tree: Tree, *, taken: tuple[str, ...] = TAKEN, in_place_of: str = "", beside: Sequence[Any] = ()
    ) -> None:
        self.arrays: list[Any] = []
        self.structure = _map(self._take, tree)
        self.backend = _backend_of_all(self.arrays, self.structure, taken, beside)
        self.places: Sequence[int] = range(len(self.arrays))  # of the arrays, among those of the structure
        if in_place_of:
            _check_writable(self, in_place_of)
            if len({id(a) for a in self.arrays}) < len(self.arrays):  # an array listed twice is one array
                self.places = list({id(a): i for i, a in enumerate(self.arrays)}.values())
                self.arrays = [self.arrays[i] for i in self.places]
        self.sparse = {i: (a, self.backend.coalesce(a)) for i, a in enumerate(self.arrays) if self.backend.is_sparse(a)}
        for i, (_, coalesced) in self.sparse.items():
            self.arrays[i] = self.backend.sparse_values(coalesced)

    def _take(self, leaf: Any) -> Any:
        if leaf is not None:
            self.arrays.append(leaf)
        return leaf

    def name(self, i: int) -> str:
        """How the caller would write the array i."""
        return _name(self.structure, self.places[i])

    def rebuild(self, arrays: Sequence[Any]) -> Tree:
        """The tree with new arrays in the place of its own."""
        arrays = list(arrays)
        for i, (_, coalesced) in self.sparse.items():
            arrays[i] = self.backend.with_values(coalesced, arrays[i])
        new = iter(arrays)
        return _map(lambda leaf: None if leaf is None else next(new), self.structure)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within it, what is written to the arrays is written to the tree."""
        with self.backend.writing():
            yield
            for array, coalesced in self.sparse.values():
                self.backend.write_back(array, coalesced)


def _map(visit: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same tree with every leaf replaced by visit(leaf). Iterators become lists."""
    if isinstance(tree, dict):
        new = {key: _map(visit, value) for key, value in tree.items()}
        if type(tree) is dict:
            return new
        same_kind = copy.copy(tree)
        same_kind.update(new)
        return same_kind
    if isinstance(tree, (list, tuple, Iterator, ValuesView)):
        # For an array, the call of _map is left out: with thousands of arrays, it is felt.
        items = [visit(item) if _BACKENDS.get(type(item)) else _map(visit, item) for item in tree]
        if isinstance(tree, tuple):
            return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
        return items
    return visit(tree)


def _leaves(tree: Tree, name: str = "grads") -> list[tuple[str, Any]]:
    """The leaves of a tree, each with the expression that leads to it: grads['conv'].weight[0]."""
    if isinstance(tree, dict):
        children = [(f"{name}[{key!r}]", value) for key, value in tree.items()]
    elif hasattr(tree, "_fields"):
        children = [(f"{name}.{field}", getattr(tree, field)) for field in tree._fields]
    elif isinstance(tree, (list, tuple)):
        children = [(f"{name}[{i}]", item) for i, item in enumerate(tree)]
    else:
        return [(name, tree)]
    return [leaf for child, value in children for leaf in _leaves(value, child)]


def _name(tree: Tree, place: int) -> str:
    """The expression that leads to one array. Only errors need it, so it is not kept at hand."""
    return [name for name, leaf in _leaves(tree) if leaf is not None][place]


# Backends -------------------------------------------------------------------------------------------------------------

_BACKENDS: dict[type, Backend] = {}


def _backend_of(x: object) -> Backend:
    """The backend that takes x, or None. A framework that was never imported can have made no array."""
    kind = type(x)
    if kind not in _BACKENDS:
        from .backends import numpy

        candidates: list[Backend] = [numpy]
        if "torch" in sys.modules:
            from .backends import torch

            candidates.append(torch)
        if "tensorflow" in sys.modules:
            from .backends import tensorflow

            candidates.append(tensorflow)
        if "jax" in sys.modules:
            from .backends import jax

            candidates.append(jax)
        _BACKENDS[kind] = next((backend for backend in candidates if backend.is_array(x)), None)
    return _BACKENDS[kind]


def _backend_of_all(arrays: Sequence[Any], tree: Tree, taken: tuple[str, ...], beside: Sequence[Any] = ()) -> Backend:
    """The one backend of all arrays of a tree; if there are none, that of an array beside it, or NumPy's."""
    shared = None
    checked = set()
    for i, array in enumerate(arrays):
        kind = type(array), getattr(array, "dtype", None)
        if kind in checked:
            continue
        checked.add(kind)
        backend = _backend_of(array)
        if backend is None:
            raise TypeError(
                f"{_name(tree, i)} is of type {type(array).__name__}; gradclip takes arrays of NumPy, PyTorch, "
                "TensorFlow or JAX, and lists, tuples, named tuples and dicts of them"
            )
        shared = shared or backend
        if backend is not shared:
            raise TypeError(
                f"{_name(tree, i)} is a {backend.NAME} array, {_name(tree, 0)} a {shared.NAME} one; "
                "the arrays of one call must belong to one framework"
            )
        if backend.dtype_name(array.dtype) not in taken:
            raise TypeError(
                f"{_name(tree, i)} has dtype {backend.dtype_name(array.dtype)}; this function takes {', '.join(taken)}"
            )
    return shared or next(filter(None, map(_backend_of, (*beside, np.float32(0)))))


def _check_writable(tree: _Tree, functional: str) -> None:
    backend = tree.backend
    if not hasattr(backend, "scale_"):
        raise TypeError(
            f"{backend.NAME} arrays cannot be written to: use {functional}, without underscore, which makes new ones"
        )
    for i, array in enumerate(tree.arrays):
        if reason := backend.why_not_writable(array):
            raise TypeError(f"{tree.name(i)} {reason}; nothing has been clipped")


# Arguments ------------------------------------------------------------------------------------------------------------


def _measure(tree: _Tree, ord: float, norm: Any, nonfinite: str) -> Any:
    """The norm of a tree, measured or given; raises if that was asked for and it is not finite."""
    backend = tree.backend
    ord = _order(ord)
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}")
    if nonfinite == "raise" and backend.is_traced(tree.arrays):
        raise ValueError(
            'nonfinite="raise" cannot look at values while they are traced by a compiler; use "nan", "zero" or "keep"'
        )
    if norm is None:
        measured = backend.measure(tree.arrays, ord)
    else:
        number = _number(norm, backend, "norm")
        if number is not None and number < 0:  # NaN may be a norm
            raise ValueError(f"norm must be ≥ 0, got {number}")
        measured = backend.given(norm, tree.arrays)
    # The exact norm of finite gradients is finite, though it may not fit the dtype of the returned one.
    if nonfinite == "raise" and not isfinite(float(measured.mantissa)):
        names = [tree.name(i) for i, array in enumerate(tree.arrays) if not backend.all_finite(array)]
        raise NonFiniteGradientError(f"not finite: {', '.join(names) or 'the given norm'}; nothing has been clipped")
    return measured


def _each_by_its_norm(tree: _Tree, max_norm: Any, ord: float, axis: Any, scale: Any, scale_slices: Any) -> list[Any]:
    backend, max_norm, ord = tree.backend, _threshold(max_norm, tree.backend), _order(ord)
    if axis is None:
        scaled = [scale([a], backend.measure([a], ord), max_norm, "nan") for a in tree.arrays]
        return [only for result in scaled for only in result or ()]
    for i, (array, _) in tree.sparse.items():
        if backend.sparse_axes(array) > 1:
            raise ValueError(f"{tree.name(i)} is sparse along several axes; clip it without axis")
    axes = [_axes(axis, tree, i) for i in range(len(tree.arrays))]
    pairs = zip(tree.arrays, axes, strict=True)
    return [scale_slices(a, backend.slice_norms(a, ord, its), max_norm) for a, its in pairs]


def _each_by_its_weights(
    tree: _Tree, params: Tree, clip_factor: Any, eps: Any, unit_axis: Any, scale_slices: Any
) -> list[Any]:
    backend = tree.backend
    clip_factor = _nonnegative(clip_factor, backend, "clip_factor", "a negative factor would flip the update's sign")
    eps = _nonnegative(eps, backend, "eps", "it stands for a norm")
    limits = []
    for i, (array, weights) in enumerate(zip(tree.arrays, _weights(tree, params), strict=True)):
        ndim = len(weights.shape)
        (unit,) = _axes(backend.UNIT_AXIS if unit_axis is None else unit_axis, tree, i) if ndim > 1 else (None,)
        axes = tuple(axis for axis in range(ndim) if axis != unit)
        norms = backend.slice_norms(weights, 2, axes).value
        limit = clip_factor * backend.at_least(norms, eps)
        if i in tree.sparse and unit == 0:
            limit = backend.rows_of(limit, tree.sparse[i][1])
        limits.append((array, axes, limit))
    return [scale_slices(array, backend.slice_norms(array, 2, axes), limit) for array, axes, limit in limits]


def _weights(tree: _Tree, params: Tree) -> list[Any]:
    """The parameters that have a gradient, in the order of a tree's arrays."""
    params = _map(lambda leaf: leaf, params)
    found = _leaves(params)
    if [name for name, _ in found] != [name for name, _ in _leaves(tree.structure)]:
        raise ValueError("params must have the structure of grads: the same containers, keys and lengths")
    have_gradients = [leaf is not None for _, leaf in _leaves(tree.structure)]
    weights = [leaf for (_, leaf), has in zip(found, have_gradients, strict=True) if has]
    backend = _backend_of_all(weights, tree.structure, TAKEN)
    weights = [weights[i] for i in tree.places]
    if tree.arrays and backend is not tree.backend:
        raise TypeError(f"params are {backend.NAME} arrays, the gradients {tree.backend.NAME} ones")
    for i, array in enumerate(tree.arrays):
        rows = i in tree.sparse  # a sparse gradient holds some rows of the whole one
        if tuple(weights[i].shape)[rows:] != tuple(array.shape)[rows:]:
            shapes = f"{tuple(array.shape)}, its parameter {tuple(weights[i].shape)}"
            raise ValueError(f"{tree.name(i)} has shape {shapes}")
    return weights


def _number(value: Any, backend: Backend, name: str) -> float | None:
    """The value of a number or 0-d array, None where only the device knows it."""
    its = _backend_of(value)
    if isinstance(value, Real) and not isinstance(value, (bool, np.bool_)):
        return float(value)
    if its is None or not its.dtype_name(value.dtype).startswith(("float", "bfloat", "int", "uint")):
        raise TypeError(f"{name} must be a number or a 0-d array, got {value!r} of type {type(value).__name__}")
    if its is not backend and its.NAME != "NumPy":
        raise TypeError(f"{name} is a {its.NAME} array, the gradients are {backend.NAME} ones")
    if len(value.shape) > 0:
        raise TypeError(f"{name} must be a number or a 0-d array, got an array of shape {tuple(value.shape)}")
    number: float | None = its.host_value(value)
    return number


def _threshold(max_norm: Any, backend: Backend) -> Any:
    return _nonnegative(max_norm, backend, "max_norm", "a negative threshold would flip the update's sign")


def _nonnegative(value: Any, backend: Backend, name: str, why: str) -> Any:
    """A number as a float; an array of the framework as it is, for its value may be known to the device alone."""
    number = _number(value, backend, name)
    if number is not None and not number >= 0:
        raise ValueError(f"{name} must be ≥ 0, got {number} ({why})")
    return value if _backend_of(value) is backend else number


def _limits(limit: Any, tree: _Tree) -> tuple[Any, Any]:
    backend = tree.backend
    if not isinstance(limit, (tuple, list)):
        number = _number(limit, backend, "limit")
        if number is not None and not number >= 0:
            raise ValueError(f"limit must be ≥ 0, got {number}; for an interval, pass (low, high)")
        limit = limit if number is None else number  # -limit of an unsigned array would wrap round
        return -limit, limit
    if len(limit) != 2:
        raise ValueError(f"limit must be a number or a pair (low, high), got {len(limit)} values")
    low, high = (_number(x, backend, name) for x, name in zip(limit, ("low", "high"), strict=True))
    for number, name in ((low, "low"), (high, "high")):
        if number is not None and isnan(number):
            raise ValueError(f"{name} must not be NaN")
    if low is not None and high is not None and low > high:
        raise ValueError(f"low must be ≤ high, got ({low}, {high})")
    if tree.sparse and not (low or 0) <= 0 <= (high or 0):
        raise ValueError(f"an interval without 0 would fill a sparse gradient with values, got ({low}, {high})")
    return limit[0] if low is None else low, limit[1] if high is None else high


def _order(ord: Any) -> float:
    if not isinstance(ord, Real) or isinstance(ord, bool) or not float(ord) > 0:
        raise ValueError(f"ord must be 1, 2, inf or another number above 0, got {ord!r}")
    return float(ord)


def _axes(axis: Any, tree: _Tree, i: int) -> tuple[int, ...]:
    """The axes as a tuple of non-negative integers that the array i has."""
    ndim = len(tree.arrays[i].shape)
    axes = axis if isinstance(axis, tuple) else (axis,)
    for number in axes:
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise TypeError(f"axis must be an integer or a tuple of integers, got {axis!r}")
        if not -ndim <= int(number) < ndim:
            raise ValueError(f"{tree.name(i)} has {ndim} dimensions, and no axis {number}")
    positive = tuple(int(number) % ndim for number in axes)
    if not 0 < len(set(positive)) == len(positive):
        raise ValueError(f"axis must name one dimension of {tree.name(i)} or several different ones, got {axis!r}")
    return positive
