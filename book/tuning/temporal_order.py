"""Pascanu's temporal order task, for many runs at once: a recurrent network in NumPy, with its gradients by hand.

There are six symbols. One of the first two stands early in a sequence, and one near its middle; the others are noise.
At the end, the network says which two it saw, and in which order: four classes. After the second of them comes half of
the sequence, and through all of that the gradient must come back.

Every array has a leading axis that counts the runs. A run has its own parameters, data and threshold.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

SYMBOLS, CLASSES = 6, 4

Array = Any  # a NumPy array


class Runs(NamedTuple):
    """What happened, step by step, with NaN after a run's end, and the step at which each run had solved the task.

    ``losses`` and ``norms``, the norms before clipping, have the shape (steps, runs); ``solved_at`` has (runs,), and is
    NaN where the task was not solved.
    """

    losses: Array
    norms: Array
    solved_at: Array


def sequences(rng: np.random.Generator, count: int, length: int) -> tuple[Array, Array]:
    """Symbols of shape (count, length), and their classes of shape (count,).

    The first of the two symbols that matter stands between 1/10 and 2/10 of the length, the second between 4/10 and
    5/10, the ends included.
    """
    symbols = rng.integers(2, SYMBOLS, (count, length))
    first, second = rng.integers(0, 2, (2, count))
    each = np.arange(count)
    symbols[each, rng.integers(length // 10, 2 * length // 10 + 1, count)] = first
    symbols[each, rng.integers(4 * length // 10, 5 * length // 10 + 1, count)] = second
    return symbols, 2 * first + second


def initial(rng: np.random.Generator, units: int = 50, nonzero: int = 15, radius: float = 0.95) -> Array:
    """The parameters of one run as a vector; `parts` tells what is where.

    Each unit hears ``nonzero`` others, and the recurrent matrix is scaled to the spectral radius ``radius``.
    """
    theta = np.zeros(units * (units + SYMBOLS + 1) + CLASSES * (units + 1))
    recurrent, inputs, _, outputs, _ = (p[0] for p in parts(theta[None], units))
    for unit in range(units):
        recurrent[rng.permutation(units)[:nonzero], unit] = rng.normal(size=nonzero)
    recurrent *= radius / np.abs(np.linalg.eigvals(recurrent)).max()
    inputs[:] = rng.normal(size=inputs.shape, scale=0.1)
    outputs[:] = rng.normal(size=outputs.shape, scale=0.1)
    return theta


def parts(theta: Array, units: int = 50) -> list[Array]:
    """The parameters of all runs, from (runs, all) to views: recurrent, inputs, bias, outputs, output bias."""
    shapes = [(units, units), (SYMBOLS, units), (1, units), (units, CLASSES), (1, CLASSES)]
    ends = np.cumsum([a * b for a, b in shapes])
    views = np.split(theta, ends[:-1], axis=1)
    return [view.reshape(-1, *shape) for view, shape in zip(views, shapes, strict=True)]


def forward(theta: Array, symbols: Array, units: int = 50) -> tuple[Array, Array]:
    """The states of shape (runs, length + 1, batch, units), and the probabilities of shape (runs, batch, classes)."""
    recurrent, inputs, bias, outputs, output_bias = parts(theta, units)
    runs, batch, length = symbols.shape
    heard = (inputs + bias)[np.arange(runs)[:, None, None], symbols.transpose(0, 2, 1)]  # (runs, length, batch, units)
    states = np.zeros((runs, length + 1, batch, units), theta.dtype)
    for t in range(length):
        state = states[:, t] @ recurrent
        state += heard[:, t]
        np.tanh(state, out=states[:, t + 1])
    scores = states[:, -1] @ outputs + output_bias
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return states, powers / powers.sum(axis=-1, keepdims=True)


def gradient(theta: Array, symbols: Array, classes: Array, units: int = 50) -> tuple[Array, Array, Array]:
    """Of each run, the mean cross-entropy of its batch, the gradient (as a vector), and the share of wrong answers."""
    recurrent, _, _, outputs, _ = parts(theta, units)
    runs, batch, length = symbols.shape
    states, probabilities = forward(theta, symbols, units)
    right = np.take_along_axis(probabilities, classes[..., None], axis=-1)[..., 0]
    loss = -np.log(np.maximum(right, np.finfo(theta.dtype).tiny)).mean(axis=1)
    wrong = (probabilities.argmax(axis=-1) != classes).mean(axis=1)

    grad = np.empty_like(theta)
    d_recurrent, d_inputs, d_bias, d_outputs, d_output_bias = parts(grad, units)
    d_scores = (probabilities - np.eye(CLASSES, dtype=theta.dtype)[classes]) / batch
    np.matmul(states[:, -1].swapaxes(1, 2), d_scores, out=d_outputs)
    d_scores.sum(axis=1, keepdims=True, out=d_output_bias)
    slopes = 1 - states[:, 1:] ** 2  # of tanh; then the gradient at what goes into it
    d_state = d_scores @ outputs.swapaxes(1, 2)
    for t in reversed(range(length)):
        slopes[:, t] *= d_state
        d_state = slopes[:, t] @ recurrent.swapaxes(1, 2)
    back = slopes.reshape(runs, length * batch, units)
    before = states[:, :-1].reshape(runs, length * batch, units)
    heard = np.eye(SYMBOLS, dtype=theta.dtype)[symbols.swapaxes(1, 2).reshape(runs, -1)]
    np.matmul(before.swapaxes(1, 2), back, out=d_recurrent)
    np.matmul(heard.swapaxes(1, 2), back, out=d_inputs)
    back.sum(axis=1, keepdims=True, out=d_bias)
    return loss, grad, wrong


def train(
    seeds: Sequence[int],
    max_norms: Any,
    *,
    length: int,
    learning_rate: Any = 0.1,
    steps: int,
    batch: int = 20,
    check_every: int = 100,
    dtype: Any = np.float32,
) -> Runs:
    """Train one run for each seed and threshold by gradient descent, each until it has solved the task.

    A run has solved the task when at most 1% of its answers over the last ``check_every`` steps were wrong. Every step
    asks about sequences that the run has never seen. Equal seeds mean equal parameters and data. A run whose norm is
    not finite has ended, too.

    Parameters
    ----------
    seeds : sequence of int
        One for each run.
    max_norms, learning_rate : float or sequence of float
        One for all, or one for each run; ``inf`` does not clip.
    length, steps, batch, check_every : int
        The length of the sequences; the most steps to train; the sequences of a step; how often to look.
    dtype : dtype
        That of all arithmetic.
    """
    max_norms, rates = (np.broadcast_to(x, len(seeds)).astype(dtype) for x in (max_norms, learning_rate))

    def train_some(which: Array) -> Runs:
        own = [seeds[run] for run in which]
        return _train(own, max_norms[which], rates[which], length, steps, batch, check_every, dtype)

    # Runs do not meet, so each core takes every second one.
    halves = [half for half in (np.arange(len(seeds))[::2], np.arange(len(seeds))[1::2]) if half.size]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(train_some, halves))
    back = np.argsort(np.concatenate(halves))
    return Runs(*(np.concatenate(parts, axis=-1)[..., back] for parts in zip(*done, strict=True)))


def _train(
    seeds: Sequence[int],
    max_norms: Array,
    rates: Array,
    length: int,
    steps: int,
    batch: int,
    check_every: int,
    dtype: Any,
) -> Runs:
    runs = len(seeds)
    rngs = [np.random.default_rng(seed) for seed in seeds]
    theta = np.stack([initial(rng) for rng in rngs]).astype(dtype)
    losses, norms = np.full((2, steps, runs), np.nan)
    solved_at = np.full(runs, np.nan)
    alive = np.arange(runs)
    for start in range(0, steps, check_every):
        data = [sequences(rngs[run], check_every * batch, length) for run in alive]
        symbols = np.stack([s.reshape(check_every, batch, length) for s, _ in data], axis=1)
        classes = np.stack([c.reshape(check_every, batch) for _, c in data], axis=1)
        mistakes = np.zeros(len(alive))
        for step in range(start, min(start + check_every, steps)):
            with np.errstate(over="ignore", invalid="ignore"):  # without clipping, a norm may leave float32
                loss, grad, wrong = gradient(theta, symbols[step - start], classes[step - start])
                norm = np.sqrt(np.einsum("ij,ij->i", grad, grad))
            limit = max_norms[alive]
            scale = np.divide(limit, norm, out=np.ones_like(norm), where=norm > limit)
            theta -= (rates[alive] * scale)[:, None] * grad
            losses[step, alive], norms[step, alive] = loss, norm
            mistakes += wrong / check_every
        solved_at[alive[mistakes <= 0.01]] = step + 1
        going = (mistakes > 0.01) & np.isfinite(norm)
        alive, theta = alive[going], theta[going]
        if not alive.size:
            break
    return Runs(losses, norms, solved_at)
