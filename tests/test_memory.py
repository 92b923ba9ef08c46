"""One memory is one array: equal memory counts and is scaled once, and a partial overlap is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip

IN_PLACE = {
    "global norm": lambda grads: gradclip.clip_by_global_norm_(grads, 0.5),
    "norm": lambda grads: gradclip.clip_by_norm_(grads, 0.5),
    "slices": lambda grads: gradclip.clip_by_norm_(grads, 0.5, axis=0),
    "value": lambda grads: gradclip.clip_by_value_(grads, 0.5),
    "adaptive": lambda grads: gradclip.clip_adaptive_(grads, grads, 0.5),
}
SAME = {
    "itself": lambda x: x,
    "view": lambda x: x.view() if isinstance(x, np.ndarray) else x.view(x.shape),
    "detached": lambda x: x[...] if isinstance(x, np.ndarray) else x.detach(),
    "all of it": lambda x: x[:],
}
RESHAPED = {
    "transposed": lambda x: x.T,
    "flat": lambda x: x.reshape(-1),
    "reversed twice": lambda x: x[::-1][::-1] if isinstance(x, np.ndarray) else x.unsqueeze(0),
}


def array(system, shape=(3, 4)):
    return system.array(3.0 + np.arange(float(np.prod(shape))).reshape(shape))


@pytest.mark.parametrize("clip", IN_PLACE)
@pytest.mark.parametrize("view", SAME | RESHAPED)
def test_equal_memory_is_one_array(in_place_system, clip, view):
    alone, twice = array(in_place_system), array(in_place_system)
    again = (SAME | RESHAPED)[view](twice)
    if clip in ("slices", "adaptive") and again.shape != twice.shape:  # whose slices?
        with pytest.raises(ValueError, match=r"grads\[0\] and grads\[1\] share memory"):
            IN_PLACE[clip]([twice, again])
    else:
        assert IN_PLACE[clip]([alone]) == IN_PLACE[clip]([twice, again])
    np.testing.assert_array_equal(
        twice,
        alone
        if clip not in ("slices", "adaptive") or view in SAME
        else again.reshape(3, 4)
        if view != "transposed"
        else again.T,
    )


LIMITS = {  # of the first and the second, which are the same array; and whether they agree
    "equal numbers": (lambda x, y: gradclip.clip_by_norm_([x, y], [0.5, 0.5]), True),
    "numbers": (lambda x, y: gradclip.clip_by_norm_([x, y], [2.0, 0.5]), False),
    "equal arrays": (lambda x, y: gradclip.clip_by_norm_([x, y], [x.sum() * 0 + 0.5, x.sum() * 0 + 0.5]), True),
    "arrays": (lambda x, y: gradclip.clip_by_norm_([x, y], [x.sum() * 0 + 2, x.sum() * 0 + 0.5]), False),
    "number and array": (lambda x, y: gradclip.clip_by_norm_([x, y], [2.0, x.sum() * 0 + 0.5]), False),
    "slices": (lambda x, y: gradclip.clip_by_norm_([x, y], [x[:1] * 0 + 2, x[:1] * 0 + 0.5], axis=0), False),
    "the same for slices": (lambda x, y: gradclip.clip_by_norm_([x, y], [(w := x[:1] * 0 + 1), w], axis=0), True),
    "weights": (lambda x, y: gradclip.clip_adaptive_([x, y], [x + 0, y * 2]), False),
    "the same weights": (lambda x, y: gradclip.clip_adaptive_([x, y], [(w := x + 0), w[:]]), True),
}


@pytest.mark.parametrize("case", LIMITS)
@pytest.mark.parametrize("view", SAME)
def test_one_memory_has_one_limit(in_place_system, case, view):
    clip, agree = LIMITS[case]
    alone, x = array(in_place_system), array(in_place_system)
    if agree:
        clip(x, SAME[view](x))
        clip(alone, array(in_place_system))
    else:
        with pytest.raises(ValueError, match=r"grads\[0\] and grads\[1\] are one memory.*\[0\] and .*\[1\] differ"):
            clip(x, SAME[view](x))
    np.testing.assert_array_equal(x, alone)


def test_a_negated_view_has_the_negated_interval():
    x = torch.tensor([3.0, -4.0, 0.5])
    for pair in ([x, torch._neg_view(x)], [(z := torch.complex(x, x)).imag, z.conj().imag]):
        before = pair[0].clone()
        for interval in ((-1.0, 2.0), (torch.tensor(-1.0), torch.tensor(2.0)), (0.0, 0.0 + math.inf)):
            with pytest.raises(ValueError, match=r"grads\[0\] and grads\[1\] are one memory.*negated"):
                gradclip.clip_by_value_(pair, interval)
            np.testing.assert_array_equal(pair[0], before)
        gradclip.clip_by_value_(pair, 1.0)
        np.testing.assert_array_equal(pair[0], [1.0, -1.0, 0.5])
        np.testing.assert_array_equal(pair[1].resolve_neg(), [-1.0, 1.0, -0.5])


PARTIAL = {
    "row": lambda x: x[1],
    "shifted": lambda x: x[1:],
    "column": lambda x: x[:, 1],
    "every other": lambda x: x[:, ::2],
}


@pytest.mark.parametrize("clip", IN_PLACE)
@pytest.mark.parametrize("view", PARTIAL)
def test_partly_equal_memory_is_refused(in_place_system, clip, view):
    x = array(in_place_system)
    with pytest.raises(ValueError, match=r"grads\['a'\] and grads\['b'\]\[0\] share memory.*nothing has been clipped"):
        IN_PLACE[clip]({"a": x, "b": [PARTIAL[view](x)]})
    np.testing.assert_array_equal(x, array(in_place_system))


@pytest.mark.parametrize("clip", IN_PLACE)
def test_neighbours_that_do_not_meet_are_two_arrays(in_place_system, clip):
    x, y = array(in_place_system), array(in_place_system)
    IN_PLACE[clip]([x[:, ::2], x[:, 1::2]])
    halves = [y[:, ::2] + 0, y[:, 1::2] + 0]
    IN_PLACE[clip](halves)
    np.testing.assert_array_equal(x[:, ::2], halves[0])
    np.testing.assert_array_equal(x[:, 1::2], halves[1])


OVERLAPPING = {
    "numpy": [
        lambda: np.lib.stride_tricks.as_strided(np.ones(9, np.float32), (3, 4), (8, 4)),
        lambda: np.lib.stride_tricks.as_strided(np.ones(9, np.float32), (3, 3), (0, 4)),
        lambda: np.lib.stride_tricks.as_strided(np.ones(9, np.float32), (4,), (2,)),
    ],
    "torch": [
        lambda: torch.ones(9).as_strided((3, 4), (2, 1)),
        lambda: torch.ones(9).unfold(0, 3, 1),
        lambda: torch.ones(3).expand(4, 3),
    ],
}


@pytest.mark.parametrize("clip", IN_PLACE)
def test_an_array_that_meets_itself_is_refused(in_place_system, clip):
    for make in OVERLAPPING[in_place_system.name]:
        with pytest.raises(TypeError, match="several of its elements share one place"):
            IN_PLACE[clip]([make()])


@st.composite
def windows(draw):
    """Two views of one piece of memory, by their first element, lengths and strides."""
    views = []
    for _ in range(2):
        n = draw(st.integers(1, 2))
        views.append(
            (
                draw(st.integers(0, 6)),
                [draw(st.integers(1, 4)) for _ in range(n)],
                [draw(st.integers(1, 6)) for _ in range(n)],
            )
        )
    return views


@settings(max_examples=300, deadline=None)
@given(windows())
def test_every_element_is_multiplied_at_most_once(views):
    """Whatever two views of one memory are: they are refused untouched, or each element is clipped once."""
    for library in (np, torch):
        memory = library.ones(64, dtype=library.float32)
        if library is np:
            pair = [
                np.lib.stride_tricks.as_strided(memory[at:], n, [4 * s for s in strides]) for at, n, strides in views
            ]
        else:
            pair = [memory[at:].as_strided(n, strides) for at, n, strides in views]
        before = memory + 0
        try:
            gradclip.clip_by_global_norm_(pair, 0.25, norm=1.0)
        except (TypeError, ValueError):
            np.testing.assert_array_equal(memory, before)
        else:
            assert set(np.unique(memory)) <= {0.25, 1.0}
            touched = {
                at + i * s[0] + j * (s[1] if len(s) > 1 else 0)
                for at, n, s in views
                for i in range(n[0])
                for j in range(n[1] if len(n) > 1 else 1)
            }
            assert {i for i in range(64) if memory[i] != 1} == touched
