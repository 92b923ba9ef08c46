"""A deep network and a recurrent one, in PyTorch, to try one remedy at a time; seeds run side by side.

All weights of one seed are one row of one matrix: the optimizers work element by element, so rows do not mix, and the
norm of a row is that seed's global norm.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradclip

CLASSES = 4
WIDTH = 32
FLOAT = torch.float32


@dataclass(frozen=True)
class Recipe:
    """What a run is made of; the defaults are no remedy at all."""

    gain: float | None = None  # weights have standard deviation gain / √inputs; None: the network's own, too large
    activation: str | None = None  # "relu", "tanh" or "sigmoid"; None: the network's own
    norm: str | None = None  # "batch" or "layer", before each activation
    residual: bool = False  # add the input of a layer (or the state before) to its output
    optimizer: str = "sgd"  # or "adam", "adamw", "rmsprop"
    learning_rate: float | None = None  # None: the network's own for SGD, 0.003 for the others
    warmup: int = 0  # steps over which the learning rate rises from 0
    weight_decay: float = 0.0  # the L2 penalty ½·weight_decay·‖θ‖²
    max_norm: float = math.inf


class Run(NamedTuple):
    """One entry per seed, NaN and infinity included."""

    loss: Tensor  # after the last step
    test_loss: Tensor  # the same, on examples that the run has not seen, with their true labels
    first_norm: Tensor  # of the gradient, before clipping
    largest_norm: Tensor
    weights: Tensor  # ‖θ‖ after the last step


class Network(ABC):
    """Layers of `WIDTH` units between a first and a last one; the seeds are the first axis of its weights."""

    gain: float
    activation: str
    learning_rate: float
    inputs: int
    hidden: int  # how many hidden layers, or steps in time
    shared: bool  # whether these are one layer, again and again

    @abstractmethod
    def data(self, generator: torch.Generator, seeds: int, examples: int) -> tuple[Tensor, Tensor]:
        """Inputs, and labels of shape (seeds, examples)."""

    @abstractmethod
    def __call__(self, theta: Tensor, x: Tensor, recipe: Recipe) -> Tensor:
        """Scores of shape (seeds, examples, classes)."""

    def shapes(self) -> list[tuple[int, int]]:
        return [(self.inputs, WIDTH)] + [(WIDTH, WIDTH)] * (1 if self.shared else self.hidden) + [(WIDTH, CLASSES)]

    def initial(self, generator: torch.Generator, recipe: Recipe, seeds: int) -> Tensor:
        gain = self.gain if recipe.gain is None else recipe.gain
        parts = []
        for number, (rows, columns) in enumerate(self.shapes()):
            first_or_last = number in (0, len(self.shapes()) - 1)
            scale = (1.0 if first_or_last else gain) / math.sqrt(rows)
            weight = scale * torch.randn(seeds, rows * columns, generator=generator, dtype=FLOAT)
            parts += [weight, torch.zeros(seeds, columns, dtype=FLOAT)]
        return torch.cat(parts, dim=1)

    def layers(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        seeds = len(theta)
        sizes = [size for rows, columns in self.shapes() for size in (rows * columns, columns)]
        parts = iter(theta.split(sizes, dim=1))
        return [(next(parts).view(seeds, *shape), next(parts).unsqueeze(1)) for shape in self.shapes()]

    def unit(self, recipe: Recipe, z: Tensor) -> Tensor:
        """Normalise, then activate: (seeds, examples, units) in and out."""
        if recipe.norm == "batch":
            seeds, examples, units = z.shape
            # Each unit of each seed is a channel; it is normalised over the examples.
            batch_norm = nn.BatchNorm1d(seeds * units, affine=False, track_running_stats=False)
            z = batch_norm(z.transpose(0, 1).reshape(examples, -1)).view(examples, seeds, units).transpose(0, 1)
        elif recipe.norm == "layer":
            z = F.layer_norm(z, z.shape[-1:])
        activate: Callable[[Tensor], Tensor] = getattr(torch, recipe.activation or self.activation)
        return activate(z)


class Deep(Network):
    gain, activation, learning_rate, hidden, shared, inputs = 2.1, "relu", 0.1, 12, False, 8

    def data(self, generator: torch.Generator, seeds: int, examples: int) -> tuple[Tensor, Tensor]:
        """Which quadrant do the first two of eight numbers lie in?"""
        x = torch.randn(seeds, examples, self.inputs, generator=generator, dtype=FLOAT)
        return x, 2 * (x[..., 0] > 0).long() + (x[..., 1] > 0).long()

    def __call__(self, theta: Tensor, x: Tensor, recipe: Recipe) -> Tensor:
        (first, first_bias), *hidden, (last, last_bias) = self.layers(theta)
        h = torch.baddbmm(first_bias, x, first)
        for weight, bias in hidden:
            out = self.unit(recipe, torch.baddbmm(bias, h, weight))
            h = h + out if recipe.residual else out
        return torch.baddbmm(last_bias, h, last)


class Recurrent(Network):
    gain, activation, learning_rate, hidden, shared, inputs = 2.0, "tanh", 0.2, 20, True, CLASSES + 1

    def data(self, generator: torch.Generator, seeds: int, examples: int) -> tuple[Tensor, Tensor]:
        """The first input is one of four symbols; noise follows. Which symbol was it?"""
        labels = torch.randint(CLASSES, (seeds, examples), generator=generator)
        x = torch.zeros(seeds, self.hidden, examples, self.inputs, dtype=FLOAT)
        x[:, 0, :, :CLASSES] = F.one_hot(labels, CLASSES)
        noise = torch.randn(seeds, self.hidden - 1, examples, generator=generator, dtype=FLOAT)
        x[:, 1:, :, CLASSES] = 0.3 * noise
        return x, labels

    def __call__(self, theta: Tensor, x: Tensor, recipe: Recipe) -> Tensor:
        (first, first_bias), (weight, bias), (last, last_bias) = self.layers(theta)
        h = torch.zeros(len(x), x.shape[2], WIDTH, dtype=FLOAT)
        inputs = torch.baddbmm(first_bias, x.flatten(1, 2), first)
        for u in inputs.unflatten(1, x.shape[1:3]).unbind(1):
            out = self.unit(recipe, torch.baddbmm(bias, h, weight) + u)
            h = h + out if recipe.residual else out
        return torch.baddbmm(last_bias, h, last)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """One mean for each seed."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(dim=1)


OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


def train(
    network: Network,
    recipe: Recipe,
    *,
    learning_rates: Sequence[float] | None = None,
    seeds: int = 8,
    steps: int = 200,
    examples: int = 64,
    flipped: float = 0,
) -> Run:
    """Full-batch training; a share `flipped` of the training labels is drawn anew.

    With `learning_rates`, each seed is trained at each of them, from the same start on the same examples: the entries
    of the result have shape (rates, seeds).
    """
    generator = torch.Generator().manual_seed(0)
    x, labels = network.data(generator, seeds, examples)
    test = network.data(generator, seeds, 4 * examples)
    theta = network.initial(generator, recipe, seeds)
    noise = torch.randint(CLASSES, labels.shape, generator=generator)
    labels = torch.where(torch.rand(labels.shape, generator=generator) < flipped, noise, labels)

    rates = learning_rates or [recipe.learning_rate or (network.learning_rate if recipe.optimizer == "sgd" else 0.003)]
    x, labels, theta, *test = (torch.cat([part] * len(rates)) for part in (x, labels, theta, *test))
    theta.requires_grad_()
    rate = torch.tensor(rates, dtype=FLOAT).repeat_interleave(seeds).unsqueeze(1)
    optimizer = OPTIMIZERS[recipe.optimizer]([theta], lr=1.0, weight_decay=recipe.weight_decay)
    norms = []
    for step in range(steps):
        (grad,) = torch.autograd.grad(cross_entropy(network(theta, x, recipe), labels).sum(), theta)
        norms.append(grad.norm(dim=1))
        theta.grad = gradclip.clip_by_norm(grad, recipe.max_norm, axis=1)
        before = theta.detach().clone()
        optimizer.step()  # at a rate of 1, since an optimizer has one rate for all rows
        with torch.no_grad():
            theta.copy_(before + min(1, (step + 1) / (recipe.warmup + 1)) * rate * (theta - before))

    theta = theta.detach()
    run = Run(
        cross_entropy(network(theta, x, recipe), labels),
        cross_entropy(network(theta, test[0], recipe), test[1]),
        norms[0],
        torch.stack(norms).nan_to_num(nan=math.inf).amax(dim=0),
        theta.norm(dim=1),
    )
    return Run(*(part.unflatten(0, (len(rates), seeds)) for part in run)) if learning_rates else run
