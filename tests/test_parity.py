"""The same gradients give the same clipped gradients in every framework: values, shapes, dtypes and nesting."""

import math

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from systems import SYSTEMS, dtype_name, values

import gradclip

# Few shapes, for XLA compiles each tree of shapes anew, and that takes nearly all the time.
SHAPES = [(), (3,), (2, 2), (0,)]
DTYPES = ["float16", "float32", "complex64"]
RTOL = {"float16": 1e-3}

finite = st.floats(-100, 100, width=16)


@st.composite
def arrays(draw):
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    n = math.prod(shape)
    real = draw(st.lists(finite, min_size=n, max_size=n))
    imaginary = draw(st.lists(finite, min_size=n, max_size=n)) if dtype == "complex64" else [0.0] * n
    scale = draw(st.sampled_from([1e-25, 1e-3, 1.0, 1e20])) if dtype != "float16" else 1.0
    flat = (np.array(real) + 1j * np.array(imaginary)) * scale
    return (flat if dtype == "complex64" else flat.real).reshape(shape), dtype


trees = st.recursive(
    arrays() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=3,
)


def convert(tree, system):
    if tree is None:
        return None
    if isinstance(tree, tuple) and isinstance(tree[0], np.ndarray):
        return system.array(*tree)
    if isinstance(tree, dict):
        return {k: convert(v, system) for k, v in tree.items()}
    return type(tree)(convert(item, system) for item in tree)


def outline(tree):
    """The tree with each array replaced by its dtype and shape."""
    if isinstance(tree, dict):
        return {k: outline(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(outline(item) for item in tree)
    return None if tree is None else (dtype_name(tree), tuple(tree.shape))


def leaves(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in leaves(item)]
    return [] if tree is None else [tree]


def same_in_all(clip, tree):
    """Clips the tree in every framework; asserts that all agree, and returns NumPy's result."""
    results = {}
    for system in SYSTEMS:
        with system.context():
            result = clip(convert(tree, system))
            clipped, norm = result if isinstance(result, gradclip.Clipped) else (result, 0.0)
            assert outline(clipped) == outline(convert(tree, system))
            results[system.name] = [values(leaf) for leaf in leaves(clipped)], float(norm)
    reference, norm = results["numpy"]
    dtypes = [dtype_name(leaf) for leaf in leaves(convert(tree, SYSTEMS[0]))]
    for clipped, its_norm in results.values():
        assert its_norm == pytest.approx(norm, rel=1e-6)
        for got, want, dtype in zip(clipped, reference, dtypes, strict=True):
            largest = np.abs(want).max(initial=0)
            atol = max(6e-8 if dtype == "float16" else 0, largest * 1e-6, 2e-38)  # XLA takes subnormal results for zero
            np.testing.assert_allclose(got, want, rtol=RTOL.get(dtype, 1e-6), atol=atol)
    return reference, norm


examples = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@examples
@given(trees, st.sampled_from([1, 2, math.inf]), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_global_norm_clipping_agrees(tree, ord, share):
    exact = [values(leaf) for leaf in leaves(convert(tree, SYSTEMS[0]))]
    norm = oracle.norm(exact, ord)
    max_norm = float(np.float32(share * norm))
    clipped, measured = same_in_all(lambda g: gradclip.clip_by_global_norm(g, max_norm, ord=ord), tree)
    assert measured == pytest.approx(norm, rel=1e-6)
    if not any(leaf.dtype == np.float16 for leaf in leaves(convert(tree, SYSTEMS[0]))):
        assert oracle.norm(clipped, ord) <= max_norm * (1 + 1e-6) or share >= 1


@examples
@given(trees, st.sampled_from([0.0, 1e-3, 10.0, math.inf]))
def test_norm_clipping_agrees(tree, max_norm):
    same_in_all(lambda g: gradclip.clip_by_norm(g, max_norm), tree)


@examples
@given(
    trees.filter(lambda tree: all(leaf.dtype.kind != "c" for leaf in leaves(convert(tree, SYSTEMS[0])))),
    st.sampled_from([0.0, 1e-3, 10.0, (-1.0, 2.0), math.inf]),
)
def test_value_clipping_agrees(tree, limit):
    same_in_all(lambda g: gradclip.clip_by_value(g, limit), tree)
