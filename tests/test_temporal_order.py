"""Part III's temporal order task: its data, and its gradients against finite differences."""

import numpy as np
import pytest

import gradclip
from book.tuning import temporal_order as task

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("length", [10, 20, 30])
def test_two_symbols_tell_the_class_and_the_others_are_noise(length):
    symbols, classes = task.sequences(RNG, 2000, length)
    matters = symbols < 2
    assert (matters.sum(axis=1) == 2).all()
    where = np.argwhere(matters)[:, 1].reshape(-1, 2)
    assert set(where[:, 0]) == set(range(length // 10, length // 5 + 1))
    assert set(where[:, 1]) == set(range(4 * length // 10, length // 2 + 1))
    first, second = symbols[matters].reshape(-1, 2).T
    assert (classes == 2 * first + second).all()
    assert (np.bincount(classes) > 400).all()
    assert set(symbols[~matters]) == {2, 3, 4, 5}


def test_each_unit_hears_fifteen_others_and_the_spectral_radius_is_as_asked():
    recurrent, _, bias, _, output_bias = task.parts(task.initial(RNG)[None])
    assert ((recurrent[0] != 0).sum(axis=0) == 15).all()
    assert np.abs(np.linalg.eigvals(recurrent[0])).max() == pytest.approx(0.95)
    assert not bias.any()
    assert not output_bias.any()


def runs(count=3, units=7, batch=4, length=12):
    theta = np.stack([task.initial(RNG, units, nonzero=4, radius=1.2) for _ in range(count)])
    data = [task.sequences(RNG, batch, length) for _ in range(count)]
    return theta + RNG.normal(size=theta.shape, scale=0.1), *map(np.stack, zip(*data, strict=True))


def test_gradients_are_finite_differences():
    theta, symbols, classes = runs()
    _, grad, _ = task.gradient(theta, symbols, classes, units=7)
    h = 1e-6
    for i in range(theta.shape[1]):
        shift = h * (np.arange(theta.shape[1]) == i)
        up, down = (task.gradient(theta + sign * shift, symbols, classes, units=7)[0] for sign in (1, -1))
        np.testing.assert_allclose(grad[:, i], (up - down) / (2 * h), rtol=1e-5, atol=1e-8)


def test_runs_do_not_touch_one_another():
    theta, symbols, classes = runs()
    together = task.gradient(theta, symbols, classes, units=7)
    for i in range(3):
        alone = task.gradient(theta[i : i + 1], symbols[i : i + 1], classes[i : i + 1], units=7)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=1e-12)


def test_loss_and_wrong_answers_are_those_of_the_probabilities():
    theta, symbols, classes = runs()
    loss, _, wrong = task.gradient(theta, symbols, classes, units=7)
    states, probabilities = task.forward(theta, symbols, units=7)
    assert states.shape == (3, 13, 4, 7)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1)
    for i in range(3):
        right = probabilities[i, np.arange(4), classes[i]]
        assert loss[i] == pytest.approx(-np.log(right).mean())
        assert wrong[i] == np.mean(probabilities[i].argmax(axis=-1) != classes[i])


def test_training_steps_are_gradclips():
    """The first steps of a run, taken again one by one, clipped by the package."""
    got = task.train([5], 0.05, length=10, steps=4, check_every=2, dtype=np.float64)
    rng = np.random.default_rng(5)
    theta = task.initial(rng)[None]
    for step in range(4):
        if step % 2 == 0:
            symbols, classes = task.sequences(rng, 2 * 20, 10)
        now = slice(20 * (step % 2), 20 * (step % 2) + 20)
        loss, grad, _ = task.gradient(theta, symbols[None, now], classes[None, now])
        clipped, norm = gradclip.clip_by_global_norm(task.parts(grad), 0.05)
        assert (got.losses[step, 0], got.norms[step, 0]) == pytest.approx((loss[0], norm))
        for part, g in zip(task.parts(theta), clipped, strict=True):
            part -= 0.1 * g
    assert (got.norms > 0.05).any()


def test_what_is_easy_is_solved_and_a_solved_run_ends():
    got = task.train([0, 1, 0], [1.0, 1.0, 0.0], length=10, steps=1500)
    assert got.losses.shape == got.norms.shape == (1500, 3)
    assert (got.solved_at[:2] <= 1500).all()
    assert np.isnan(got.solved_at[2])  # a threshold of 0 stops all learning
    for run, ends in enumerate([*got.solved_at[:2].astype(int), 1500]):
        assert np.isfinite(got.norms[:ends, run]).all()
        assert np.isnan(got.norms[ends:, run]).all()
