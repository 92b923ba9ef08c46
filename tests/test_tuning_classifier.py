"""Part III's classifier with spikes: against PyTorch's own layers, optimizer and loop, one seed at a time."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradclip
from book.tuning import classifier
from book.tuning.classifier import Fixed, Runs, steps_lost
from gradclip import thresholds

SEEDS, DEPTH, STEPS, SPIKES = 3, 2, 6, (2, 4)


def by_hand(clip, rate=0.1, loss_scale=1.0, warmup=0):
    """The same runs, each by nn.Sequential and torch.optim.SGD: losses and norms of shape (steps, seeds)."""
    generator = torch.Generator().manual_seed(0)
    points = classifier.Points(generator, SEEDS, torch.float64)
    start = classifier.initial(generator, SEEDS, DEPTH, torch.float64)
    held_out = points.draw(100)
    batches = [points.draw(64) for _ in range(STEPS)]
    seen, norms = np.empty((2, STEPS, SEEDS))
    for seed in range(SEEDS):
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
        nn.utils.vector_to_parameters(start[seed].clone(), model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        for step, (x, labels) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / (warmup + 1))
            optimizer.zero_grad()
            x = x[seed] * (30 if step in SPIKES else 1)
            (loss_scale * nn.functional.cross_entropy(model(x), labels[seed])).backward()
            params = list(model.parameters())
            norms[step, seed] = gradclip.global_norm([p.grad for p in params])
            clip(step, params)
            optimizer.step()
            with torch.no_grad():
                seen[step, seed] = nn.functional.cross_entropy(model(held_out[0][seed]), held_out[1][seed])
    return seen, norms


def by_norm(max_norm):
    return lambda step, params: gradclip.clip_by_global_norm_([p.grad for p in params], max_norm)


CASES = {
    "no clipping": (by_norm(math.inf), [Fixed() for _ in range(SEEDS)], {}),
    "fixed": (by_norm(0.5), [Fixed(0.5) for _ in range(SEEDS)], {}),
    "warm-up": (by_norm(0.5), [Fixed(0.5) for _ in range(SEEDS)], {"warmup": 4}),
    "loss scale": (by_norm(4.0), [Fixed(4.0) for _ in range(SEEDS)], {"loss_scale": 8.0}),
    "AGC": (
        # all but the output layer's weight and bias
        lambda step, params: gradclip.clip_adaptive_(
            [p.grad for p in params[:-2]], [p.data for p in params[:-2]], 0.02
        ),
        [Fixed() for _ in range(SEEDS)],
        {"clip_factor": 0.02},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_runs_are_those_of_pytorchs_own_parts(name):
    clip, limits, options = CASES[name]
    got = classifier.train(limits, steps=STEPS, learning_rate=0.1, depth=DEPTH, spikes=SPIKES, **options)
    options.pop("clip_factor", None)
    seen, norms = by_hand(clip, **options)
    np.testing.assert_allclose(got.losses, seen, rtol=1e-9)
    np.testing.assert_allclose(got.norms, norms, rtol=1e-9)
    assert (got.norms[list(SPIKES)] > 3 * got.norms[0]).all()


def test_each_seed_has_its_own_threshold():
    limits = [thresholds.Percentile(50) for _ in range(SEEDS)]
    got = classifier.train(limits, steps=STEPS, learning_rate=0.1, depth=DEPTH)
    expected = [[np.percentile(got.norms[: step + 1, seed], 50) for seed in range(SEEDS)] for step in range(STEPS)]
    np.testing.assert_allclose(got.max_norms, expected, rtol=1e-12)


def test_clipping_may_stop_after_some_steps():
    options = {"steps": STEPS, "learning_rate": 0.1, "depth": DEPTH}
    tight, free = ([Fixed(limit) for _ in range(SEEDS)] for limit in (0.1, math.inf))
    some = classifier.train(tight, clips=lambda step: step < 3, **options)
    np.testing.assert_array_equal(some.losses[:3], classifier.train(tight, **options).losses[:3])
    assert (some.losses[3] != classifier.train(tight, **options).losses[3]).all()
    never = classifier.train(tight, clips=lambda step: False, **options)
    np.testing.assert_array_equal(never.losses, classifier.train(free, **options).losses)


def test_it_learns():
    got = classifier.train([Fixed()], steps=150, learning_rate=0.05)
    assert got.losses[-1, 0] < 0.5 * got.losses[0, 0]
    assert got.accuracy[0] > 0.6


def test_steps_lost_until_the_loss_is_back():
    losses = np.array([[2.0, 2.0], [9.0, 2.0], [2.1, 9.0], [2.0, 9.0], [5.0, 9.0], [5.0, 1.0]])
    runs = Runs(losses, losses, losses, losses[0])
    np.testing.assert_array_equal(steps_lost(runs, [1]), [[1, 0]])  # 5% above counts as back
    np.testing.assert_array_equal(steps_lost(runs, [1, 4]), [[1, 0], [2, 0]])  # seed 0 never comes back
