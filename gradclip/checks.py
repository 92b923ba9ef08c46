"""The settings and states of thresholds and records: plain numbers, each checked here and once."""

from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np


def number(value: Any, name: str) -> float:
    """The value of a number, or of a 0-d array of any framework."""
    dtype = getattr(value, "dtype", "float" if isinstance(value, Real) and not isinstance(value, bool) else None)
    kind = str(getattr(dtype, "name", dtype))
    if not ("float" in kind or "int" in kind):
        raise TypeError(f"{name} must be a number or a 0-d array, got {value!r} of type {type(value).__name__}")
    if shape := tuple(getattr(value, "shape", ())):
        raise TypeError(f"{name} must be a number or a 0-d array, got an array of shape {shape}")
    # PyTorch warns when float() is called on a norm that can be differentiated; TensorFlow has no item().
    value = value.item() if hasattr(value, "item") else value
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is an integer beyond the range of float64") from None


def norm(value: Any, name: str = "norm") -> float:
    """The value of a norm, which may be NaN."""
    value = number(value, name)
    if value < 0:
        raise ValueError(f"{name} must be ≥ 0, got {value}")
    return float(value)


def threshold(value: Any, name: str = "max_norm") -> float:
    """The value of a threshold, which may be infinite and must not be NaN."""
    value = number(value, name)
    if not value >= 0:
        raise ValueError(f"{name} must be ≥ 0, got {value} (a negative threshold would flip the update's sign)")
    return float(value)


def positive(value: Any, name: str) -> float:
    """The value of a number that is finite and above 0."""
    value = number(value, name)
    if not 0 < value < inf:
        raise ValueError(f"{name} must be finite and > 0, got {value}")
    return float(value)


def share(value: Any, name: str) -> float:
    """How much of the past a step keeps, from 0 to below 1."""
    value = number(value, name)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value} (it is how much of the past a step keeps)")
    return float(value)


def count(value: Any, name: str, least: int, why: str) -> int:
    """The value of an integer that is at least this large, for the reason given."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be ≥ {least}, got {value} ({why})")
    return int(value)


# States ---------------------------------------------------------------------------------------------------------------


def entries(state: Any, owner: object, *names: str) -> list[Any]:
    """The entries of a state, which must have these names and no others."""
    kind = type(owner).__name__
    if not isinstance(state, dict):
        raise TypeError(f"the state of a {kind} must be a dict, got {state!r} of type {type(state).__name__}")
    if state.keys() != set(names):
        got = ", ".join(map(str, state)) or "none"
        raise ValueError(f"the state of a {kind} has the keys {', '.join(names)}, got {got}")
    return [state[name] for name in names]


def finite_norms(values: Any, name: str) -> list[float]:
    """A list of norms that are all finite."""
    if not isinstance(values, list):
        raise TypeError(f"{name} must be a list of numbers, got {values!r} of type {type(values).__name__}")
    if set(map(type, values)) == {float}:  # a history may hold millions
        numbers = np.array(values)
        if bool(((numbers >= 0) & np.isfinite(numbers)).all()):
            return list(values)
    for value in values:
        if not isfinite(norm(value, name)):
            raise ValueError(f"{name} must be finite, got {value}")
    return [float(value) for value in values]
