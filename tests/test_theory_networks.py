"""The gradients that Part I looks into, against finite differences."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from book.theory import networks
from tools.notebooks import BOOK

ACTIVATIONS = {name: getattr(networks, name) for name in ("IDENTITY", "RELU", "SIGMOID", "TANH")}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)


def numeric(function, array, h=1e-6):
    """The derivative of function() with respect to each entry of an array that it reads."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + h
        up = function()
        array[index] = kept - h
        gradient[index] = (up - function()) / (2 * h)
        array[index] = kept
    return gradient


def deep(rng, networks_beside=()):
    layers = networks.initialise(rng, [3, 6, 5, 4, 2], 1.5, networks_beside)
    for layer in layers:
        layer.bias[:] = rng.normal(0, 0.5, layer.bias.shape)
    return layers


@each_activation
def test_slope(activation):
    z = np.array([-30.0, -2.0, -0.3, 0.4, 3.0, 30.0])
    h = 1e-6
    expected = (activation.value(z + h) - activation.value(z - h)) / (2 * h)
    np.testing.assert_allclose(activation.slope(z), expected, atol=1e-9)


def test_the_sigmoid_does_not_overflow():
    np.testing.assert_array_equal(networks.SIGMOID.value(np.array([-1000.0, 0.0, 1000.0])), [0, 0.5, 1])
    np.testing.assert_array_equal(networks.SIGMOID.slope(np.array([-1000.0, 0.0, 1000.0])), [0, 0.25, 0])


@each_activation
def test_deep_gradients(activation):
    rng = np.random.default_rng(0)
    layers = deep(rng)
    x, labels = rng.standard_normal((7, 3)), rng.integers(2, size=7)

    def loss():
        return networks.cross_entropy(networks.forward(layers, x, activation)[-1], labels)[0]

    zs = networks.forward(layers, x, activation)
    _, grads = networks.backward(layers, x, zs, networks.cross_entropy(zs[-1], labels)[1], activation)
    for layer, grad in zip(layers, grads, strict=True):
        for array, gradient in zip(layer, grad, strict=True):
            np.testing.assert_allclose(gradient, numeric(loss, array), atol=1e-8)


@each_activation
def test_delta_is_the_product_of_the_later_jacobians(activation):
    rng = np.random.default_rng(1)
    layers = deep(rng)
    x, delta = rng.standard_normal((1, 3)), rng.standard_normal((1, 2))
    zs = networks.forward(layers, x, activation)
    deltas, _ = networks.backward(layers, x, zs, delta, activation)
    expected = delta[0]
    for number in reversed(range(1, len(layers))):
        expected = networks.jacobian(layers[number].weight, zs[number - 1], activation).T @ expected
        np.testing.assert_allclose(deltas[number - 1][0], expected, atol=1e-14)


def test_networks_side_by_side_are_each_their_own():
    rng = np.random.default_rng(2)
    layers = deep(rng, (3,))
    x, labels = rng.standard_normal((3, 7, 3)), rng.integers(2, size=(3, 7))
    zs = networks.forward(layers, x, networks.TANH)
    losses, delta = networks.cross_entropy(zs[-1], labels)
    _, grads = networks.backward(layers, x, zs, delta, networks.TANH)
    for i in range(3):
        one = [networks.Layer(weight[i], bias[i]) for weight, bias in layers]
        zs_one = networks.forward(one, x[i], networks.TANH)
        loss, delta = networks.cross_entropy(zs_one[-1], labels[i])
        np.testing.assert_allclose(losses[i], loss)
        _, expected = networks.backward(one, x[i], zs_one, delta, networks.TANH)
        for grad, grad_one in zip(grads, expected, strict=True):
            np.testing.assert_allclose(grad.weight[i], grad_one.weight, atol=1e-14)
            np.testing.assert_allclose(grad.bias[i], grad_one.bias, atol=1e-14)


@each_activation
def test_recurrent_gradients(activation):
    rng = np.random.default_rng(3)
    weight, x = rng.normal(0, 0.6, (4, 4)), rng.standard_normal((2, 4))
    inputs, target = rng.standard_normal((9, 2, 4)), rng.standard_normal((2, 4))

    def loss():
        return ((networks.unroll(weight, x, inputs, activation)[-1] - target) ** 2).sum() / 2

    states = networks.unroll(weight, x, inputs, activation)
    deltas, grad = networks.backward_through_time(weight, states, states[-1] - target, activation)
    assert len(deltas) == len(states) == 10
    np.testing.assert_allclose(grad, numeric(loss, weight), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(deltas[0], numeric(loss, x), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(deltas[6], numeric(loss, inputs[5]), rtol=1e-6, atol=1e-8)  # u₆ adds to x₆


def test_cross_entropy_of_even_odds_and_of_huge_outputs():
    loss, delta = networks.cross_entropy(np.zeros((3, 4)), np.array([0, 1, 2]))
    np.testing.assert_allclose(loss, np.log(4))
    np.testing.assert_allclose(delta[0], np.array([-0.75, 0.25, 0.25, 0.25]) / 3)
    loss, delta = networks.cross_entropy(np.array([[0.0, 1e4]]), np.array([0]))
    assert loss == 1e4
    np.testing.assert_allclose(delta, [[-1, 1]])


def test_initial_scale():
    layers = networks.initialise(np.random.default_rng(4), [400, 500, 2], 3.0)
    assert [layer.weight.shape for layer in layers] == [(500, 400), (2, 500)]
    np.testing.assert_allclose(layers[0].weight.std(), 3 / np.sqrt(400), rtol=0.01)
    assert not layers[0].bias.any()


def test_single_precision_stays_single():
    rng = np.random.default_rng(5)
    layers = [networks.Layer(*(a.astype(np.float32) for a in layer)) for layer in deep(rng)]
    x = rng.standard_normal((7, 3)).astype(np.float32)
    for activation in ACTIVATIONS.values():
        zs = networks.forward(layers, x, activation)
        loss, delta = networks.cross_entropy(zs[-1], rng.integers(2, size=7))
        deltas, grads = networks.backward(layers, x, zs, delta, activation)
        arrays = [loss, *zs, *deltas, *(array for grad in grads for array in grad)]
        assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_scattered_numbers_look_random_and_go_on_where_they_stopped():
    numbers = networks.scattered(100_000)
    np.testing.assert_allclose([numbers.mean(), numbers.var()], [0, 1], atol=0.01)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    np.testing.assert_array_equal(networks.scattered(10, 50), numbers[50:60])
    shallow, deep = networks.same_everywhere(2, 1.5, 8)[0], networks.same_everywhere(3, 1.5, 8)[0]
    assert [layer.weight.shape for layer in deep] == [(8, 8), (8, 8), (8, 8), (1, 8)]
    np.testing.assert_array_equal(shallow[1].weight, deep[1].weight)
    assert not any((layer.weight == other.weight[:1]).any() for layer, other in zip(deep[1:], deep, strict=False))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js to run the figure's script without a browser")
def test_the_movable_fan_is_that_of_these_networks():
    cases = [(1.1, 30, "relu"), (0.5, 1, "identity"), (2, 60, "tanh"), (8, 20, "sigmoid")]
    script = (
        f"const fan = require({json.dumps(str(BOOK / '_static' / 'movable' / 'exploding-fan.js'))});"
        f"console.log(JSON.stringify({json.dumps(cases)}.map((c) => fan.norms(...c))));"
    )
    found = json.loads(subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True).stdout)
    for (factor, depth, name), norms in zip(cases, found, strict=True):
        activation = ACTIVATIONS[name.upper()]
        layers, x = networks.same_everywhere(depth, factor * (np.sqrt(2) if name == "relu" else 1))
        zs = networks.forward(layers, x, activation)
        deltas, grads = networks.backward(layers, x, zs, np.ones((1, 1)), activation)
        # Rounding differs between two sums of 64 numbers, and tanh at scale 2 enlarges it over 60 layers.
        np.testing.assert_allclose(norms["arriving"], [np.linalg.norm(d) for d in deltas], rtol=1e-6)
        np.testing.assert_allclose(norms["weights"], [np.linalg.norm(g.weight) for g in grads], rtol=1e-6)
