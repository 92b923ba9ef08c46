"""Faults: non-finite values anywhere, in-place forms that fail half-way, many threads at once."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from systems import SYSTEMS, bits, dtype_name, values

import gradclip

SHAPES = ((70000,), (3, 5), (), (2, 0), (300, 7))


def spoilt(system, rng):
    """A tree with non-finite values at random places, and the names of the leaves that hold them."""
    raw = [rng.standard_normal(s) for s in SHAPES]
    names = []
    for i in rng.permutation(len(SHAPES))[: rng.integers(0, 4)]:
        if raw[i].size:
            places = rng.integers(0, raw[i].size, rng.integers(1, 4))
            raw[i].reshape(-1)[places] = rng.choice([np.inf, -np.inf, np.nan], len(places))
            names.append(i)
    dtypes = rng.choice(system.reals, len(raw))
    tree = {"layers": [system.array(r, d) for r, d in zip(raw, dtypes, strict=True)], "none": None}
    return tree, [f"grads['layers'][{i}]" for i in sorted(names)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("policy", ["nan", "zero", "keep", "raise"])
def test_non_finite_values_anywhere(system, policy, seed):
    rng = np.random.default_rng([seed, 7])
    tree, names = spoilt(system, rng)
    before = [bits(a) for a in tree["layers"]]
    if names and policy == "raise":
        with pytest.raises(gradclip.NonFiniteGradientError) as caught:
            gradclip.clip_by_global_norm(tree, 1.0, nonfinite=policy)
        assert f"not finite: {', '.join(names)};" in str(caught.value)
    else:
        clipped, norm = gradclip.clip_by_global_norm(tree, 1.0, nonfinite=policy)
        assert math.isfinite(norm) == (not names)
        for got, was in zip(clipped["layers"], tree["layers"], strict=True):
            assert dtype_name(got) == dtype_name(was)
            if not names:
                np.testing.assert_allclose(values(got), values(was) / float(norm), rtol=1e-2, atol=1e-6)
            elif policy == "keep":
                assert bits(got) == bits(was)
            else:
                assert (np.isnan(values(got)) if policy == "nan" else values(got) == 0).all()
    assert [bits(a) for a in tree["layers"]] == before


@pytest.mark.parametrize("seed", range(12))
def test_in_place_all_or_nothing(in_place_system, seed):
    """Whatever is refused, for whatever reason, at whatever place: nothing has been written."""
    rng = np.random.default_rng([seed, 11])
    system = in_place_system
    arrays = [system.array(3 * rng.standard_normal(s)) for s in SHAPES]
    bad = {
        "dtype": torch.ones(3).int() if system.name == "torch" else np.ones(3, int),
        "framework": np.ones(3) if system.name == "torch" else torch.ones(3),
        "type": "text",
        "read-only": torch.nn.Parameter(torch.ones(3)) if system.name == "torch" else np.float32(3),
    }
    calls = [
        lambda g: gradclip.clip_by_global_norm_(g, 0.5),
        lambda g: gradclip.clip_by_norm_(g, 0.5),
        lambda g: gradclip.clip_by_value_(g, 0.5),
        lambda g: gradclip.clip_adaptive_(g, g),
    ]
    before = [bits(a) for a in arrays]
    place = rng.integers(0, len(arrays) + 1)
    for culprit, call in itertools.product(bad.values(), calls):
        with pytest.raises(TypeError):
            call([*arrays[:place], culprit, *arrays[place:]])
        assert [bits(a) for a in arrays] == before
    failing = [
        lambda: gradclip.clip_by_norm_(arrays, 0.5, axis=1),  # not every array has one
        lambda: gradclip.clip_adaptive_(arrays, arrays[:-1]),
        lambda: gradclip.clip_adaptive_(arrays, [*arrays[:-1], system.array([1.0])]),
        lambda: gradclip.clip_adaptive_(arrays, arrays, -1.0),
        lambda: gradclip.clip_by_global_norm_([*arrays, system.array(np.nan)], 0.5, nonfinite="raise"),
        lambda: gradclip.clip_by_global_norm_(arrays, 0.5, norm=-1.0),
        lambda: gradclip.clip_by_global_norm_(arrays, 0.5, ord=0),
        lambda: gradclip.clip_by_value_(arrays, (1.0, -1.0)),
    ]
    for call in failing:
        with pytest.raises((TypeError, ValueError, gradclip.NonFiniteGradientError)):
            call()
        assert [bits(a) for a in arrays] == before


def test_threads_clip_different_trees_at_once():
    def work(seed):
        rng = np.random.default_rng(seed)
        system = SYSTEMS[seed % 4]
        raw = [rng.standard_normal(s) for s in ((20000,), (40, 5))]
        for _ in range(20):
            arrays = [system.array(r) for r in raw]
            clipped, norm = gradclip.clip_by_global_norm({"g": arrays}, 1.0)
            if system.in_place:
                gradclip.clip_by_global_norm_(arrays, 1.0)
                assert [bits(a) for a in arrays] == [bits(a) for a in clipped["g"]]
            assert float(norm) == pytest.approx(math.sqrt(sum((r**2).sum() for r in raw)), rel=1e-6)
            assert float(gradclip.global_norm(clipped)) == pytest.approx(1.0, rel=1e-6)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))
