"""A classifier without normalisation, for many seeds at once, whose data are sometimes wrong; in PyTorch.

Ten classes, each a cloud of points around its own centre; every step sees new points. A *spike* is a step whose inputs
are too large, as if a sensor had reported in another unit. All weights of one seed are one row of one matrix, so that
the norm of a row is that seed's global norm.
"""

import math
from collections.abc import Callable, Container, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

import gradclip

CLASSES, INPUTS, WIDTH = 10, 20, 64


class Threshold(Protocol):
    """Any of gradclip.thresholds, or `Fixed`."""

    def update(self, norm: Any) -> float: ...


class Fixed:
    """A threshold that stays where it is."""

    def __init__(self, max_norm: float = math.inf) -> None:
        self.max_norm = max_norm

    def update(self, norm: Any) -> float:
        return self.max_norm


class Runs(NamedTuple):
    """Arrays of shape (steps, seeds), and the shares of right answers at the end, of shape (seeds,)."""

    losses: npt.NDArray[Any]  # after each step, on points that the run does not train on
    norms: npt.NDArray[Any]  # before clipping
    max_norms: npt.NDArray[Any]
    accuracy: npt.NDArray[Any]


class Points:
    """Where the classes lie, for each seed, and points drawn from them."""

    def __init__(self, generator: torch.Generator, seeds: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = generator, dtype
        self.centres = torch.randn(seeds, CLASSES, INPUTS, generator=generator, dtype=dtype)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Inputs of shape (seeds, count, INPUTS) and labels of shape (seeds, count)."""
        seeds = len(self.centres)
        labels = torch.randint(CLASSES, (seeds, count), generator=self.generator)
        noise = torch.randn(seeds, count, INPUTS, generator=self.generator, dtype=self.dtype)
        return self.centres[torch.arange(seeds)[:, None], labels] + 1.5 * noise, labels


def shapes(depth: int) -> list[tuple[int, ...]]:
    """Of weights (out, in) and biases (out), in turn, of ``depth`` hidden layers and an output layer."""
    sizes = [INPUTS, *[WIDTH] * depth, CLASSES]
    return [shape for inputs, outputs in pairwise(sizes) for shape in ((outputs, inputs), (outputs,))]


def layers(theta: Tensor, depth: int) -> list[tuple[Tensor, Tensor]]:
    """Views of the weights (seeds, out, in) and biases (seeds, out) of each layer."""
    each = shapes(depth)
    parts = theta.split([math.prod(shape) for shape in each], dim=1)
    views = [part.unflatten(1, shape) for part, shape in zip(parts, each, strict=True)]
    return list(zip(views[::2], views[1::2], strict=True))


def initial(generator: torch.Generator, seeds: int, depth: int, dtype: torch.dtype) -> Tensor:
    """Weights with variance 2 / inputs, biases 0; of shape (seeds, all)."""
    theta = torch.zeros(seeds, sum(map(math.prod, shapes(depth))), dtype=dtype)
    for weight, _ in layers(theta, depth):
        weight.copy_(math.sqrt(2 / weight.shape[2]) * torch.randn(weight.shape, generator=generator, dtype=dtype))
    return theta


def losses(theta: Tensor, x: Tensor, labels: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """For each seed, the mean cross-entropy and the share of right answers."""
    *hidden, (weight, bias) = layers(theta, depth)
    for w, b in hidden:
        x = torch.relu(torch.baddbmm(b[:, None], x, w.mT))
    scores = torch.baddbmm(bias[:, None], x, weight.mT)
    loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return loss.mean(1), (scores.argmax(-1) == labels).double().mean(1)


def clip_adaptive(grad: Tensor, theta: Tensor, clip_factor: float, depth: int) -> None:
    """AGC in place, on all layers but the last, as its authors do; a bias is one unit."""
    # A unit is a row: of a weight, a neuron's inputs; of a bias, a seed.
    rows = [[array.flatten(0, -2) for layer in layers(x, depth)[:-1] for array in layer] for x in (grad, theta)]
    clipped = iter(gradclip.clip_adaptive(rows[0], rows[1], clip_factor))
    for layer in layers(grad, depth)[:-1]:
        for array in layer:
            array.copy_(next(clipped).view(array.shape))


def train(
    thresholds: Sequence[Threshold],
    *,
    steps: int,
    learning_rate: float,
    depth: int = 3,
    momentum: float = 0.9,
    batch: int = 64,
    spikes: Container[int] = (),
    spike: float = 30.0,
    loss_scale: float = 1.0,
    clip_factor: float | None = None,
    warmup: int = 0,
    clips: Callable[[int], bool] = lambda step: True,
    dtype: torch.dtype = torch.float64,
) -> Runs:
    """Train one run for each threshold, by stochastic gradient descent with momentum.

    Parameters
    ----------
    thresholds : sequence of Threshold
        One for each seed; each sees the norms of its own run.
    steps, learning_rate, momentum, batch
        As usual.
    depth : int
        How many hidden layers.
    spikes, spike
        At these steps the inputs are ``spike`` times as large.
    loss_scale : float
        What the loss, and so every gradient, is multiplied by; not the recorded loss.
    clip_factor : float, optional
        Clip by AGC with this factor instead; the thresholds are then only recorded.
    warmup : int
        Over how many steps the learning rate rises from 0.
    clips : function
        Whether to clip at this step.
    dtype : torch.dtype
        That of all arithmetic.
    """
    seeds = len(thresholds)
    generator = torch.Generator().manual_seed(0)
    points = Points(generator, seeds, dtype)
    theta = initial(generator, seeds, depth, dtype).requires_grad_()
    held_out = points.draw(100)
    velocity = torch.zeros_like(theta)
    seen, norms, max_norms = [], [], []
    for step in range(steps):
        x, labels = points.draw(batch)
        loss, _ = losses(theta, x * spike if step in spikes else x, labels, depth)
        (grad,) = torch.autograd.grad(loss_scale * loss.sum(), theta)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(grad, dim=1)
            limits = [threshold.update(n) for threshold, n in zip(thresholds, norm.tolist(), strict=True)]
            if clip_factor is not None:
                clip_adaptive(grad, theta, clip_factor, depth)
            elif clips(step):
                limit = torch.tensor(limits, dtype=dtype)
                grad *= torch.where(norm > limit, limit / norm, 1.0)[:, None]
            velocity.mul_(momentum).add_(grad)
            theta -= learning_rate * min(1.0, (step + 1) / (warmup + 1)) * velocity
            seen.append(losses(theta, *held_out, depth)[0])
        norms.append(norm)
        max_norms.append(limits)
    with torch.no_grad():
        _, accuracy = losses(theta, *points.draw(2000), depth)
    return Runs(torch.stack(seen).numpy(), torch.stack(norms).numpy(), np.array(max_norms), accuracy.numpy())


def steps_lost(runs: Runs, spikes: Sequence[int], margin: float = 1.05) -> npt.NDArray[Any]:
    """How long after each spike the loss took to come back to ``margin`` times what it was before; (spikes, seeds).

    At most the steps until the next spike, or the end.
    """
    lost = np.empty((len(spikes), runs.losses.shape[1]))
    for i, (start, end) in enumerate(zip(spikes, [*spikes[1:], len(runs.losses)], strict=True)):
        back = runs.losses[start:end] <= margin * runs.losses[start - 1]
        lost[i] = np.where(back.any(axis=0), back.argmax(axis=0), end - start)
    return lost
