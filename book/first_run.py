"""The run of the front page: a network that adds up thirty numbers, one at a time, in plain NumPy."""

import numpy as np

import gradclip

TIMES, UNITS, BATCH, LEARNING_RATE = 30, 16, 32, 0.04


def start() -> dict[str, np.ndarray]:
    """The weights: the state is kept by W, takes in a number by u, and is read out by v."""
    rng = np.random.default_rng(0)
    u = rng.normal(0, 1 / 4, (1, UNITS))
    rotation, _ = np.linalg.qr(rng.normal(size=(UNITS, UNITS)))
    return {
        "u": u,
        "W": 0.8 * rotation,
        "v": rng.normal(0, 1 / np.sqrt(UNITS), (UNITS, 1)),
    }


def loss_and_gradients(
    weights: dict[str, np.ndarray], x: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """x has the shape (times, batch); the target is its sum over the times, scaled to variance 1/3."""
    u, W, v = weights["u"], weights["W"], weights["v"]
    states = [np.zeros((x.shape[1], UNITS))]
    for numbers in x:
        states.append(numbers[:, None] * u + states[-1] @ W)
    error = states[-1] @ v - x.sum(axis=0)[:, None] / np.sqrt(len(x))
    back = 2 * error / len(error)
    gradients = {
        "v": states[-1].T @ back,
        "W": np.zeros_like(W),
        "u": np.zeros_like(u),
    }
    back = back @ v.T
    for numbers, state in zip(x[::-1], states[-2::-1], strict=True):
        gradients["u"] += numbers[None] @ back
        gradients["W"] += state.T @ back
        back = back @ W.T
    return float(np.mean(error**2)), gradients


def train(max_norm: float, steps: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """The loss and the norm before clipping, at each step."""
    weights, rng = start(), np.random.default_rng(1)
    losses, norms = np.empty((2, steps))
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # one of the runs ends in infinity and NaN
        for step in range(steps):
            losses[step], gradients = loss_and_gradients(
                weights, rng.uniform(-1, 1, (TIMES, BATCH))
            )
            clipped, norms[step] = gradclip.clip_by_global_norm(gradients, max_norm)
            weights = {
                name: weights[name] - LEARNING_RATE * clipped[name]
                for name in weights
            }
    return losses, norms
