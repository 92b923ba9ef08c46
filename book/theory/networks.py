"""A deep network and a recurrent one, small enough to see every gradient inside them.

Both are the same line. A layer, or a step in time, takes z to W φ(z) + b, and its Jacobian is W diag(φ'(z)).
Rows are examples. More axes in front are more networks, each with its own weights: seeds run side by side.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


class Activation(NamedTuple):
    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


class Layer(NamedTuple):
    weight: Array  # (…, out, in)
    bias: Array  # (…, 1, out)


def sigmoid(z: Array) -> Array:
    e: Array = np.exp(-np.abs(z))  # at most 1: it cannot overflow
    s: Array = np.where(z >= 0, 1, e) / (1 + e)
    return s


def sigmoid_slope(z: Array) -> Array:
    s = sigmoid(z)
    return s * (1 - s)


IDENTITY = Activation(lambda z: z, np.ones_like)
RELU = Activation(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype))
SIGMOID = Activation(sigmoid, sigmoid_slope)
TANH = Activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2)


def initialise(
    rng: np.random.Generator, widths: Sequence[int], scale: float, networks: tuple[int, ...] = ()
) -> list[Layer]:
    """Weights from a normal distribution with standard deviation scale / √(inputs of the layer), biases 0."""
    return [
        Layer(rng.normal(0, scale / np.sqrt(inputs), (*networks, outputs, inputs)), np.zeros((*networks, 1, outputs)))
        for inputs, outputs in pairwise(widths)
    ]


def forward(layers: Sequence[Layer], x: Array, activation: Activation) -> list[Array]:
    """What each layer computes before its activation, z₁ … z_D; the last is the output."""
    zs: list[Array] = []
    for weight, bias in layers:
        zs.append((activation.value(zs[-1]) if zs else x) @ weight.mT + bias)
    return zs


def backward(
    layers: Sequence[Layer], x: Array, zs: Sequence[Array], delta: Array, activation: Activation
) -> tuple[list[Array], list[Layer]]:
    """From ∂E/∂z of the last layer: ∂E/∂z of each layer, and the gradients of its weights and biases."""
    deltas = [delta]
    for z, (weight, _) in zip(zs[-2::-1], layers[:0:-1], strict=True):
        deltas.insert(0, deltas[0] @ weight * activation.slope(z))
    inputs = [x, *(activation.value(z) for z in zs[:-1])]
    grads = [Layer(d.mT @ a, d.sum(axis=-2, keepdims=True)) for d, a in zip(deltas, inputs, strict=True)]
    return deltas, grads


def jacobian(weight: Array, z: Array, activation: Activation) -> Array:
    """∂(W φ(z) + b)/∂z, for one example."""
    return weight * activation.slope(z)


def cross_entropy(z: Array, labels: npt.NDArray[np.integer[Any]]) -> tuple[Array, Array]:
    """The mean over the examples of −log softmax(z)[label], and its derivative with respect to z."""
    shifted = z - z.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    target = np.eye(z.shape[-1], dtype=z.dtype)[labels]
    loss: Array = -(log_p * target).sum(axis=-1).mean(axis=-1)
    return loss, (np.exp(log_p) - target) / z.shape[-2]


def unroll(weight: Array, x: Array, inputs: Sequence[Array], activation: Activation) -> list[Array]:
    """The states x₀ … x_T of a recurrent network: x_t = W φ(x_{t−1}) + u_t."""
    states = [x]
    for u in inputs:
        states.append(activation.value(states[-1]) @ weight.mT + u)
    return states


def backward_through_time(
    weight: Array, states: Sequence[Array], delta: Array, activation: Activation
) -> tuple[list[Array], Array]:
    """From ∂E/∂x_T: ∂E/∂x_t of each state, and the gradient of the one weight that all steps share."""
    deltas = [delta]
    grad: Array = np.zeros_like(weight)
    for x in states[-2::-1]:
        grad = grad + deltas[0].mT @ activation.value(x)
        deltas.insert(0, deltas[0] @ weight * activation.slope(x))
    return deltas, grad


def scattered(count: int, first: int = 0) -> Array:
    """Numbers with mean 0 and variance 1, uniform between −√3 and √3: the same on every machine and in JavaScript.

    The i-th is the index `first` + i, its bits mixed until they look random. The movable figure draws its weights so.
    """
    bits = np.arange(first, first + count, dtype=np.uint32) + np.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)  # uint32 drops what exceeds 32 bits
    return (bits / 2**31 - 1) * np.sqrt(3)


def same_everywhere(depth: int, scale: float, width: int = 64) -> tuple[list[Layer], Array]:
    """`depth` hidden layers and an output of one unit, weights of standard deviation scale / √width; and an input.

    A deeper network begins with the layers of a shallower one.
    """
    x = scattered(width)[np.newaxis]
    layers, used = [], width
    for outputs in [*(width for _ in range(depth)), 1]:
        weight = scattered(outputs * width, used).reshape(outputs, width) * (scale / np.sqrt(width))
        layers.append(Layer(weight, np.zeros((1, outputs))))
        used += weight.size
    return layers, x
