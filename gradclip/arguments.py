"""The arguments of the public functions: thresholds, limits, orders, axes, policies, each checked here and once."""

from math import isnan
from numbers import Integral, Real
from typing import Any

import numpy as np

from .backends import Backend, backend_of
from .trees import Tree

NONFINITE = ("nan", "zero", "keep", "raise")


def value_of(value: Any, backend: Backend, name: str) -> float | None:
    """The value of a number or 0-d array, None where only the device knows it."""
    its = backend_of(value)
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


def threshold(max_norm: Any, backend: Backend) -> Any:
    """A threshold, checked."""
    return nonnegative(max_norm, backend, "max_norm", "a negative threshold would flip the update's sign")


def nonnegative(value: Any, backend: Backend, name: str, why: str) -> Any:
    """A number as a float; an array of the framework as it is, for its value may be known to the device alone."""
    number = value_of(value, backend, name)
    if number is not None and not number >= 0:
        raise ValueError(f"{name} must be ≥ 0, got {number} ({why})")
    return value if backend_of(value) is backend else number


def limits(limit: Any, tree: Tree) -> tuple[Any, Any]:
    """The interval of a value clip, checked: its low and its high end."""
    backend = tree.backend
    if not isinstance(limit, (tuple, list)):
        number = value_of(limit, backend, "limit")
        if number is not None and not number >= 0:
            raise ValueError(f"limit must be ≥ 0, got {number}; for an interval, pass (low, high)")
        limit = limit if number is None else number  # -limit of an unsigned array would wrap round
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
    return limit[0] if low is None else low, limit[1] if high is None else high


def order(ord: Any) -> float:
    """The order of a norm, checked."""
    if not isinstance(ord, Real) or isinstance(ord, bool) or not float(ord) > 0:
        raise ValueError(f"ord must be 1, 2, inf or another number above 0, got {ord!r}")
    return float(ord)


def axes(axis: Any, tree: Tree, i: int) -> tuple[int, ...]:
    """The axes as a tuple of non-negative integers that the array i has."""
    ndim = len(tree.arrays[i].shape)
    given = axis if isinstance(axis, tuple) else (axis,)
    for number in given:
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise TypeError(f"axis must be an integer or a tuple of integers, got {axis!r}")
        if not -ndim <= int(number) < ndim:
            raise ValueError(f"{tree.name(i)} has {ndim} dimensions, and no axis {number}")
    positive = tuple(int(number) % ndim for number in given)
    if not 0 < len(set(positive)) == len(positive):
        raise ValueError(f"axis must name one dimension of {tree.name(i)} or several different ones, got {axis!r}")
    return positive


def policy(nonfinite: str) -> str:
    """What becomes of gradients that are not finite, checked."""
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}")
    return nonfinite
