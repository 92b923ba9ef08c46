"""The arguments of the public functions: thresholds, limits, orders, axes, policies, each checked here and once."""

from math import isnan
from numbers import Integral, Real
from typing import Any

import numpy as np

from .backends import Backend, advice, backend_of, pytree_node
from .trees import Tree, matching

NONFINITE = ("nan", "zero", "keep", "raise")
NEGATIVE = "a negative threshold would flip the update's sign"


def leaves(value: Any) -> list[Any]:
    """The leaves of an argument that may be a pair or a tree."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else None
    return [value] if children is None else [leaf for child in children for leaf in leaves(child)]


def value_of(value: Any, backend: Backend, name: str, shape: tuple[int, ...] = ()) -> float | None:
    """The value of a number or of an array of one element, None where only the device knows it.

    Of an array that broadcasts to ``shape``, where one is given, the least element.
    """
    if isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and backend_of(value) is None:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} is too large for a float; inf clips nothing") from None
    framework = backend_of(value)
    if framework is None or not framework.dtype_name(value.dtype).startswith(("float", "bfloat", "int", "uint")):
        kind = f"got {value!r} of type {type(value).__name__}{advice(value)}"
        raise TypeError(f"{name} must be a number or a 0-d array, {kind}")
    if framework is not backend and framework.NAME != "NumPy":
        raise TypeError(f"{name} is a {framework.NAME} array, the gradients are {backend.NAME} ones")
    given = () if _of_unknown_rank(value) else tuple(value.shape)
    if given not in ((), (1,)) and not (shape and framework is backend and _broadcasts(given, shape)):
        like = f" or, to go with the norms of the slices, broadcast to {shape}" if shape else ""
        raise TypeError(f"{name} must be a number or a 0-d array{like}, got an array of shape {given}")
    number: float | None = framework.host_value(value)
    return number


def _of_unknown_rank(x: Any) -> bool:
    """Whether nothing is known of the shape of x, as of what tf.numpy_function gives in a graph of TensorFlow."""
    return getattr(x.shape, "rank", 0) is None


def _broadcasts(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(given, shape) == shape
    except ValueError:
        return False


def threshold(max_norm: Any, backend: Backend) -> Any:
    """A threshold, checked."""
    return nonnegative(max_norm, backend, "max_norm", NEGATIVE)


def thresholds(max_norm: Any, tree: Tree, axes: list[tuple[int, ...] | None]) -> list[Any]:
    """The threshold of each array, checked: one for all, or a tree of them; one for all of its slices, or an array."""
    trees = _is_tree(max_norm) and _is_tree(tree.structure)
    each = matching(tree, max_norm, "max_norm") if trees else [max_norm] * len(tree.arrays)
    if not trees:  # a threshold is checked though there is nothing to clip
        each or threshold(max_norm, tree.backend)
    checked: list[Any] = []
    for i, (c, axis) in enumerate(zip(each, axes, strict=True)):
        if i and c is each[0] and axis is None:
            checked.append(checked[0])
            continue
        lengths = () if axis is None or _of_unknown_rank(tree.arrays[i]) else tuple(tree.arrays[i].shape)
        shape = tuple(1 if j in (axis or ()) else n for j, n in enumerate(lengths))
        name = "max_norm" + tree.name(i).removeprefix("grads") if trees else "max_norm"
        checked.append(nonnegative(c, tree.backend, name, NEGATIVE, shape))
    return checked


def _is_tree(x: Any) -> bool:
    """Whether x is a nesting rather than one leaf, None being a leaf."""
    if isinstance(x, (dict, list, tuple)):
        return True
    return x is not None and backend_of(x) is None and pytree_node(x) is not None


def nonnegative(value: Any, backend: Backend, name: str, why: str, shape: tuple[int, ...] = ()) -> Any:
    """A number as a float; an array of the framework as it is, for its value may be known to the device alone."""
    number = value_of(value, backend, name, shape)
    if number is not None and not number >= 0:
        raise ValueError(f"{name} must be ≥ 0, got {number} ({why})")
    return array_of(value, backend) if backend_of(value) is backend else number


def array_of(value: Any, backend: Backend) -> Any:
    """An array of the framework, as one without axes if it has one element, and whole where it is sharded."""
    whole = backend.whole(value) if hasattr(backend, "whole") else value
    return whole if _of_unknown_rank(value) or tuple(value.shape) != (1,) else backend.reshape(whole, ())


def limits(limit: Any, tree: Tree) -> tuple[Any, Any]:
    """The interval of a value clip, checked: its low and its high end."""
    backend = tree.backend
    if not isinstance(limit, (tuple, list)):
        number = value_of(limit, backend, "limit")
        if number is not None and not number >= 0:
            raise ValueError(f"limit must be ≥ 0, got {number}; for an interval, pass (low, high)")
        limit = array_of(limit, backend) if number is None else number  # -limit of an unsigned array would wrap round
        return -limit, limit
    if len(limit) != 2:
        raise ValueError(f"limit must be a number or a pair (low, high), got {len(limit)} values")
    low, high = (value_of(x, backend, name) for x, name in zip(limit, ("low", "high"), strict=True))
    for number, name in ((low, "low"), (high, "high")):
        if number is not None and isnan(number):
            raise ValueError(f"{name} must not be NaN")
    if low is not None and high is not None and low > high:
        raise ValueError(f"low must be ≤ high, got ({low}, {high})")
    if tree.sparse and not (low or 0) <= 0 <= (high or 0):
        raise ValueError(f"an interval without 0 would fill a sparse gradient with values, got ({low}, {high})")
    low, high = (array_of(x, backend) if n is None else n for x, n in zip(limit, (low, high), strict=True))
    return low, high


def norm(value: Any, backend: Backend, name: str = "norm") -> float | None:
    """The value of a norm, checked, None where only the device knows it. NaN may be a norm."""
    number = value_of(value, backend, name)
    if number is not None and number < 0:
        raise ValueError(f"{name} must be ≥ 0, got {number}")
    return number


def order(ord: Any, name: str = "ord") -> float:
    """The order of a norm, checked."""
    if not isinstance(ord, Real) or isinstance(ord, bool) or not float(ord) > 0:
        raise ValueError(f"{name} must be 1, 2, inf or another number above 0, got {ord!r}")
    return float(ord)


def axes(axis: Any, tree: Tree, i: int) -> tuple[int, ...]:
    """The axes as a tuple of non-negative integers that the array i has."""
    unknown = _of_unknown_rank(tree.arrays[i])
    ndim = 0 if unknown else len(tree.arrays[i].shape)
    given = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    for number in given:
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise TypeError(f"axis must be an integer or a tuple of integers, got {axis!r}")
        if not unknown and not -ndim <= int(number) < ndim:
            raise ValueError(f"{tree.name(i)} has {ndim} dimensions, and no axis {number}")
    positive = tuple(int(number) if unknown else int(number) % ndim for number in given)
    if not 0 < len(set(positive)) == len(positive):
        raise ValueError(f"axis must name one dimension of {tree.name(i)} or several different ones, got {axis!r}")
    return positive


def unit_axes(unit_axis: Any, axis: Any, tree: Tree, i: int, ndim: int) -> tuple[int, ...] | None:
    """The axes that the norm of a unit of array i runs over, None for all: with fewer than two, it is one unit."""
    if unit_axis is not None and axis is not None:
        raise ValueError("unit_axis and axis say the same in two ways; pass one of them")
    if ndim < 2:
        return None
    if axis is not None:
        return axes(axis, tree, i)
    units = axes(tree.backend.UNIT_AXIS if unit_axis is None else unit_axis, tree, i)
    return tuple(j for j in range(ndim) if j not in units)


def policy(nonfinite: str) -> str:
    """What becomes of gradients that are not finite, checked."""
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}")
    return nonfinite
