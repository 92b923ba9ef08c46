"""The front page: the lines to type run, and its run explodes and is saved on any processor."""

import runpy

import numpy as np
import pytest

import gradclip
from tools.notebooks import BOOK

SNIPPETS = sorted((BOOK / "snippets").glob("first_*.py"))


@pytest.fixture(scope="module")
def first_run():
    return runpy.run_path(str(BOOK / "first_run.py"))


@pytest.mark.parametrize("file", SNIPPETS, ids=lambda file: file.stem)
def test_the_line_to_type_bounds_the_step(file):
    after = runpy.run_path(str(file))
    moved = {  # the step divided by the learning rate of 0.1, from gradients whose norm is far above 1
        "first_pytorch": lambda: [p.grad.numpy() for p in after["model"].parameters()],
        "first_keras": lambda: [
            (np.asarray(v) - start) / 0.1 for v, start in zip(after["model"].weights, [1, 0], strict=True)
        ],
        "first_jax": lambda: [np.asarray(after["updates"]) / 0.1],
        "first_numpy": lambda: [(after["w"] - 1) / 0.1, after["b"] / 0.1],
    }[file.stem]()
    assert gradclip.global_norm([np.asarray(g, np.float64) for g in moved]) == pytest.approx(1, abs=1e-4)
    if "norm" in after:
        assert float(after["norm"]) > 100  # the norm before clipping


def test_the_gradients_of_the_first_run_are_those_of_its_loss(first_run):
    weights, rng = first_run["start"](), np.random.default_rng(2)
    x = rng.uniform(-1, 1, (30, 4))
    _, gradients = first_run["loss_and_gradients"](weights, x)
    for name, array in weights.items():
        place = tuple(rng.integers(0, size) for size in array.shape)
        losses = []
        for shift in (1e-6, -1e-6):
            shifted = array.copy()
            shifted[place] += shift
            losses.append(first_run["loss_and_gradients"](weights | {name: shifted}, x)[0])
        assert gradients[name][place] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-9)


def test_one_run_ends_in_nan_and_the_other_learns(first_run):
    losses, norms = first_run["train"](np.inf)
    (gone,) = np.flatnonzero(~np.isfinite(losses))[:1]
    assert norms[: gone - 2].max() < 3
    assert norms[gone - 2] > 30 * norms[gone - 3]
    clipped, _ = first_run["train"](1.0)
    np.testing.assert_allclose(clipped[: gone - 5], losses[: gone - 5], rtol=1e-6)  # until the threshold acts, one run
    assert clipped[-30:].mean() < 0.05 < losses[: gone - 3].mean()
