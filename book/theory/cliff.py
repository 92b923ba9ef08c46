"""The one-unit recurrent network behind figure 6 of Pascanu, Mikolov and Bengio (2013), and descent on its error.

The book's page *The cliff* and its movable figure, in JavaScript, take the same steps. After each step the parameters
are rounded to eight decimals: without that, the last bit of a processor's exponential decides where a path ends.
"""

import math
from typing import Any, NamedTuple

import numpy as np

import gradclip

VALLEY = 1e-3  # a run is in the valley from the step at which its error falls below this for good


class Run(NamedTuple):
    path: Any  # (steps + 1, 2): w and b
    errors: Any
    norms: Any  # before clipping


def sigmoid(x: Any) -> Any:
    if isinstance(
        x, float
    ):  # one network in Python's floats: twenty times as fast as in arrays of one
        return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    with np.errstate(over="ignore"):  # exp may give inf; 1 / inf = 0 is right
        return 1 / (1 + np.exp(-x))


def error_and_gradient(w: Any, b: Any, updates: int = 50) -> tuple[Any, Any, Any]:
    # w and b are numbers, or arrays in which each entry is one network
    x, dx_dw, dx_db = 0 * w + 0.5, 0 * w, 0 * w
    for _ in range(updates):
        s = sigmoid(x)
        slope = w * (s * (1 - s))
        x, dx_dw, dx_db = w * s + b, s + slope * dx_dw, 1 + slope * dx_db
    s = sigmoid(x)
    chain = 2 * (s - 0.7) * s * (1 - s)
    return (s - 0.7) ** 2, chain * dx_dw, chain * dx_db


def descend(
    start: tuple[float, float],
    max_norm: float,
    steps: int = 1000,
    learning_rate: float = 0.1,
    decimals: int | None = 8,
) -> Run:
    path, errors, norms = [np.array(start, dtype=float)], [], []
    for _ in range(steps):
        error, *gradient = error_and_gradient(*path[-1].tolist())
        clipped, norm = gradclip.clip_by_global_norm(np.array(gradient), max_norm)
        theta = path[-1] - learning_rate * clipped
        path.append(theta if decimals is None else np.round(theta, decimals))
        errors.append(error)
        norms.append(norm)
    return Run(np.array(path), np.array(errors), np.array(norms))


def descend_many(
    starts: Any, max_norm: float, steps: int = 1000, learning_rate: float = 0.1
) -> tuple[Any, Any, Any]:
    """Of runs from the columns of ``starts``: touched the valley? in it at the last step? and the longest step."""
    theta = np.array(starts, dtype=float)
    touched = np.zeros(theta.shape[1], dtype=bool)
    longest = np.zeros(theta.shape[1])
    for _ in range(steps):
        error, *gradient = error_and_gradient(*theta)
        touched |= error < VALLEY / 10
        # axis=0: every column, which is one network, by its own norm
        step = learning_rate * gradclip.clip_by_norm(
            np.array(gradient), max_norm, axis=0
        )
        longest = np.maximum(longest, np.hypot(*step))
        theta = np.round(theta - step, 8)
    return touched, error < VALLEY, longest


def longest_step(run: Run) -> float:
    return float(np.linalg.norm(np.diff(run.path, axis=0), axis=1).max())


def valley_from(run: Run) -> int | None:
    """The step from which the error stays below VALLEY, or None."""
    settled = 1 + int(np.flatnonzero(run.errors >= VALLEY)[-1])
    return settled if settled < len(run.errors) else None
