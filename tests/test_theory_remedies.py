"""The networks on which the page on remedies tries them, each seed alone."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import gradclip
from book.theory import remedies_lab
from book.theory.remedies_lab import Deep, Recipe, Recurrent, cross_entropy, train

NETWORKS = {"deep": Deep(), "recurrent": Recurrent()}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    monkeypatch.setattr(remedies_lab, "FLOAT", torch.float64)


def start(network, recipe=Recipe(), seeds=3):  # noqa: B008, a Recipe is frozen
    generator = torch.Generator().manual_seed(0)
    x, labels = network.data(generator, seeds, 16)
    return x, labels, network.initial(generator, recipe, seeds)


@each_network
@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("residual", [False, True])
def test_seeds_do_not_mix(network, norm, residual):
    recipe = Recipe(norm=norm, residual=residual, gain=1.0)
    x, _, theta = start(network)
    together = network(theta, x, recipe)
    for seed in range(3):
        alone = network(theta[seed : seed + 1], x[seed : seed + 1], recipe)
        torch.testing.assert_close(together[seed], alone[0])


def test_the_deep_network_is_a_stack_of_torch_layers():
    network = Deep()
    x, _, theta = start(network)
    parts = network.layers(theta)
    modules = []
    for number, (weight, bias) in enumerate(parts):
        linear = nn.Linear(*weight.shape[1:], dtype=torch.float64)
        linear.weight.data, linear.bias.data = weight[0].T, bias[0, 0]
        modules.append(linear)
        if 0 < number < len(parts) - 1:
            modules += [nn.BatchNorm1d(weight.shape[2], affine=False, dtype=torch.float64), nn.ReLU()]
    expected = nn.Sequential(*modules)(x[0])
    torch.testing.assert_close(network(theta, x, Recipe(norm="batch"))[0], expected)


def test_the_recurrent_network_reads_one_input_after_the_other():
    network = Recurrent()
    x, _, theta = start(network)
    (first, _), (weight, _), (last, _) = ((w[0], b[0]) for w, b in network.layers(theta))  # biases start at 0
    h = torch.zeros(16, weight.shape[0], dtype=torch.float64)
    for u in x[0]:
        h = torch.tanh(h @ weight + u @ first)
    torch.testing.assert_close(network(theta, x, Recipe())[0], h @ last)


def test_residual_connections_add_what_came_before():
    recipe = Recipe(residual=True, gain=0.0)  # the hidden weights are 0, and the biases start there
    deep, recurrent = Deep(), Recurrent()
    x, _, theta = start(deep, recipe)
    first, *_, last = (weight[0] for weight, _ in deep.layers(theta))
    torch.testing.assert_close(deep(theta, x, recipe)[0], x[0] @ first @ last)
    x, _, theta = start(recurrent, recipe)
    first, _, last = (weight[0] for weight, _ in recurrent.layers(theta))
    torch.testing.assert_close(recurrent(theta, x, recipe)[0], torch.tanh(x[0] @ first).sum(dim=0) @ last)


@each_network
def test_each_seed_is_clipped_by_its_own_global_norm(network):
    recipe = Recipe(learning_rate=1.0, max_norm=0.01)
    generator = torch.Generator().manual_seed(0)
    x, labels = network.data(generator, 3, 16)
    network.data(generator, 3, 64)
    theta = network.initial(generator, recipe, 3).requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(network(theta, x, recipe), labels).sum(), theta)
    clipped = [gradclip.clip_by_global_norm(row, 0.01).grads for row in grad]
    expected = theta.detach() - torch.stack(clipped)

    run = train(network, recipe, seeds=3, steps=1, examples=16)
    torch.testing.assert_close(run.first_norm, grad.norm(dim=1))
    torch.testing.assert_close(run.weights, expected.norm(dim=1))


@each_network
def test_the_options_do_what_they_say(network):
    short = {"seeds": 2, "steps": 3, "examples": 16}
    plain = train(network, Recipe(gain=1.0), **short)
    decayed = train(network, Recipe(gain=1.0, weight_decay=0.1), **short)
    assert (decayed.weights < plain.weights).all()
    torch.testing.assert_close(decayed.first_norm, plain.first_norm)  # the penalty is not in the norm

    slow = train(network, Recipe(gain=1.0, learning_rate=1e-12), **short)
    warm = train(network, Recipe(gain=1.0, warmup=10**12), **short)
    torch.testing.assert_close(warm.loss, slow.loss)

    assert not torch.equal(train(network, Recipe(gain=1.0), flipped=1, **short).loss, plain.loss)


def test_a_run_that_explodes_says_so_and_leaves_the_others_alone():
    run = train(Deep(), Recipe(gain=20.0), seeds=2, steps=5, examples=16)
    assert (run.largest_norm == math.inf).all()
    assert not run.loss.isfinite().any()
    clipped = train(Deep(), replace(Recipe(gain=20.0), max_norm=1.0), seeds=2, steps=5, examples=16)
    assert clipped.loss.isfinite().all()


@each_network
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_several_rates_at_once_are_runs_at_one_rate_each(network, optimizer):
    recipe = Recipe(gain=1.0, optimizer=optimizer, weight_decay=0.1, warmup=2, max_norm=1.0)
    short = {"seeds": 2, "steps": 3, "examples": 16}
    together = train(network, recipe, learning_rates=[0.01, 0.1], **short)
    for i, rate in enumerate([0.01, 0.1]):
        alone = train(network, replace(recipe, learning_rate=rate), **short)
        for one, all_rates in zip(alone, together, strict=True):
            torch.testing.assert_close(all_rates[i], one)


def test_a_step_is_that_of_the_optimizer_at_its_rate():
    recipe = Recipe(gain=1.0, optimizer="adamw", learning_rate=0.01, weight_decay=0.1)
    network, generator = Deep(), torch.Generator().manual_seed(0)
    x, labels = network.data(generator, 2, 16)
    network.data(generator, 2, 64)
    theta = network.initial(generator, recipe, 2).requires_grad_()
    optimizer = torch.optim.AdamW([theta], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(network(theta, x, recipe), labels).sum().backward()
        optimizer.step()
    run = train(network, recipe, seeds=2, steps=3, examples=16)
    torch.testing.assert_close(run.weights, theta.detach().norm(dim=1))
