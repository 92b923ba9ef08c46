"""The run of the quickstart: a small network in NumPy, and data in which one label has the wrong unit."""

from itertools import pairwise

import numpy as np

import gradclip

LAYERS, BATCH, STEPS, WRONG, LEARNING_RATE = (1, 32, 32, 32, 1), 32, 200, 60, 0.045
GRID = np.linspace(-1, 1, 201, dtype=np.float32)[:, None]


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Points of sin 3x in metres, with noise; one label, in the batch of step 60, is in millimetres."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (STEPS, BATCH, 1))
    y = np.sin(3 * x) + 0.05 * rng.standard_normal(x.shape)
    y[WRONG, np.abs(y[WRONG]).argmax()] *= 1000
    return list(zip(x.astype(np.float32), y.astype(np.float32), strict=True))


def start() -> dict[str, np.ndarray]:
    """Weights of He's initialisation, and biases of zero."""
    rng = np.random.default_rng(0)
    params = {}
    for i, (inputs, outputs) in enumerate(pairwise(LAYERS)):
        scale = np.sqrt((2 if outputs > 1 else 1) / inputs)
        weight = scale * rng.standard_normal((inputs, outputs))
        params[f"W{i}"] = weight.astype(np.float32)
        params[f"b{i}"] = np.zeros(outputs, np.float32)
    return params


def predict(params: dict[str, np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """The input, what each hidden layer makes of it, and the prediction."""
    last = len(LAYERS) - 2
    states = [x]
    for i in range(last + 1):
        z = states[-1] @ params[f"W{i}"] + params[f"b{i}"]
        states.append(z if i == last else np.maximum(z, 0))
    return states


def loss_and_gradients(
    params: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    states = predict(params, x)
    error = states[-1] - y
    back, grads = 2 * error / len(y), {}
    for i in reversed(range(len(LAYERS) - 1)):
        grads[f"W{i}"] = states[i].T @ back
        grads[f"b{i}"] = back.sum(axis=0)
        back = (back @ params[f"W{i}"].T) * (states[i] > 0)
    return float(np.mean(error**2)), grads


def train(
    max_norm: float,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The loss and the norm before clipping at each step, and the parameters at the end."""
    params = start()
    losses, norms = np.empty((2, STEPS))
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # without clipping, it overflows
        for step, (x, y) in enumerate(batches()):
            losses[step], grads = loss_and_gradients(params, x, y)
            grads, norms[step] = gradclip.clip_by_global_norm(grads, max_norm)
            params = {
                name: params[name] - LEARNING_RATE * grads[name] for name in params
            }
    return losses, norms, params


def error(prediction: np.ndarray) -> float:
    """The root mean square distance of a prediction on GRID from sin 3x, in metres."""
    return float(np.sqrt(np.mean((np.asarray(prediction) - np.sin(3 * GRID)) ** 2)))
