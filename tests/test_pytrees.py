"""Any pytree that is registered with JAX goes through every functional form, and an error names its leaves."""

import dataclasses
from typing import Any

import chex
import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

import gradclip


@chex.dataclass
class Chex:
    w: Any
    b: Any


@flax.struct.dataclass
class Struct:
    w: Any
    b: Any
    kind: str = flax.struct.field(pytree_node=False, default="static")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    w: Any
    b: Any


class Pair:
    """A node whose children have no names."""

    def __init__(self, w, b):
        self.w, self.b = w, b


jax.tree_util.register_pytree_node(Pair, lambda p: ((p.w, p.b), None), lambda _, children: Pair(*children))


class Module(eqx.Module):
    """With a leaf that is no array, as the activation function in Equinox' own MLP is."""

    w: Any
    b: Any
    activation: Any = jnp.tanh
    name: str = "module"
    frozen: Any = None


class Linear(nnx.Module):
    def __init__(self, w, b):
        self.w, self.b = nnx.Param(w), nnx.Param(b)


KINDS = {
    "nnx": lambda w, b: nnx.state(Linear(w, b)),
    "FrozenDict": lambda w, b: FrozenDict({"layer": {"w": w, "b": b}}),
    "Equinox": Module,
    "chex": lambda w, b: Chex(w=w, b=b),
    "flax.struct": Struct,
    "dataclass": Registered,
    "node": Pair,
    "masked": lambda w, b: {"w": w, "frozen": optax.MaskedNode(), "none": None, "b": b},
    "nested": lambda w, b: [Pair(w, None), {"b": (Registered(b, None),)}],
}
W, B = np.array([[3.0, 0.0], [0.0, 0.3]], np.float32), np.array([4.0], np.float32)


@pytest.fixture(params=KINDS)
def make(request):
    return lambda w, b: KINDS[request.param](jnp.asarray(w), jnp.asarray(b))


def arrays(tree):
    """The arrays among the leaves, the larger one first, for containers differ in their order."""
    found = [np.asarray(x) for x in jax.tree.leaves(tree) if eqx.is_array(x)]
    return sorted(found, key=lambda x: (-x.size, x.sum()))


FORMS = {
    "clip_by_global_norm": lambda g: gradclip.clip_by_global_norm(g, 1.0).grads,
    "clip_by_norm": lambda g: gradclip.clip_by_norm(g, 1.0),
    "clip_by_norm axis": lambda g: gradclip.clip_by_norm(g, 1.0, axis=-1),
    "clip_by_value": lambda g: gradclip.clip_by_value(g, 0.5),
    "clip_by_block_rms": lambda g: gradclip.clip_by_block_rms(g, 0.5),
    "clip_adaptive": lambda g: gradclip.clip_adaptive(g, g, 0.1),
    "leaf_norms": gradclip.leaf_norms,
    "clip_per_example": lambda g: gradclip.clip_per_example(jax.tree.map(lambda x: x, g), 1.0).grads,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_what_it_gives_for_a_list(make, form):
    b = np.array([4.0, 1.0], np.float32) if form == "clip_per_example" else B
    clipped = FORMS[form](make(W, b))
    for got, want in zip(arrays(clipped), FORMS[form]([jnp.asarray(W), jnp.asarray(b)]), strict=True):
        np.testing.assert_array_equal(got, want)
    assert jax.tree.structure(clipped) == jax.tree.structure(make(W, b))


def test_what_is_static_is_left_as_it_is(make):
    grads = make(W, B)
    clipped = gradclip.clip_by_global_norm(grads, 1.0).grads
    static = [x for x in jax.tree.leaves(grads) if not eqx.is_array(x)]
    assert [x for x in jax.tree.leaves(clipped) if not eqx.is_array(x)] == static
    assert type(clipped) is type(grads)


def test_the_global_norm_and_its_derivative(make):
    norm, grads = eqx.filter_value_and_grad(gradclip.global_norm)(make(W, B))
    length = np.sqrt((W**2).sum() + (B**2).sum())
    np.testing.assert_allclose(norm, length, rtol=1e-6)
    for got, x in zip(arrays(grads), (W, B), strict=True):
        np.testing.assert_allclose(got, x / length, rtol=1e-6)


def test_under_jit(make):
    got, norm = eqx.filter_jit(gradclip.clip_by_global_norm)(make(W, B), 1.0)
    want = gradclip.clip_by_global_norm(make(W, B), 1.0)
    np.testing.assert_allclose(norm, want.norm, rtol=1e-6)
    for x, y in zip(arrays(got), arrays(want.grads), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_under_vmap(make):
    batch = make(np.stack([W, 2 * W]), np.stack([B, 0 * B]))
    got = eqx.filter_vmap(lambda g: gradclip.clip_by_global_norm(g, 1.0).grads)(batch)
    for i, single in enumerate([make(W, B), make(2 * W, 0 * B)]):
        want = gradclip.clip_by_global_norm(single, 1.0).grads
        for x, y in zip(arrays(got), arrays(want), strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-6)


PATHS = {
    "nnx": "grads['b'].value",
    "FrozenDict": "grads['layer']['b']",
    "Equinox": "grads.b",
    "chex": "grads.b",
    "flax.struct": "grads.b",
    "dataclass": "grads.b",
    "node": "grads[<flat index 1>]",
    "masked": "grads['b']",
    "nested": "grads[1]['b'][0].w",
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_names_the_leaf_by_its_path(kind):
    grads = KINDS[kind](jnp.asarray(W), jnp.array([np.nan]))
    with pytest.raises(gradclip.NonFiniteGradientError) as error:
        gradclip.clip_by_global_norm(grads, 1.0, nonfinite="raise")
    assert f"not finite: {PATHS[kind]};" in str(error.value)
    with pytest.raises(TypeError) as error:
        gradclip.global_norm(KINDS[kind](jnp.asarray(W), jnp.array([1])))
    assert str(error.value).startswith(f"{PATHS[kind]} has dtype int32")


@pytest.mark.parametrize("kind", ["FrozenDict", "Equinox", "chex", "node"])
def test_a_number_among_the_arrays_is_no_static_part(kind):
    with pytest.raises(TypeError, match="is of type float"):
        gradclip.global_norm(KINDS[kind](jnp.asarray(W), 1.0))


@pytest.mark.parametrize("kind", ["FrozenDict", "Equinox", "chex", "node"])
def test_an_array_of_another_framework_inside_is_refused(kind):
    with pytest.raises(TypeError, match="must belong to one framework"):
        gradclip.global_norm(KINDS[kind](jnp.asarray(W), np.ones(1, np.float32)))


def test_a_whole_equinox_model_is_the_params_of_its_gradients():
    """The gradients have None where the model has its activation function, and here for a whole layer."""
    model = eqx.nn.MLP(2, 1, 4, 2, key=jax.random.key(0))
    grads = eqx.filter_grad(lambda m: m(jnp.ones(2)).sum() * 100)(model)
    grads = eqx.tree_at(lambda m: m.layers[0], grads, None)
    clipped = gradclip.clip_adaptive(grads, model, 0.01)
    assert clipped.layers[0] is None
    for layer, own, weights in zip(clipped.layers[1:], grads.layers[1:], model.layers[1:], strict=True):
        want = gradclip.clip_adaptive([own.weight, own.bias], [weights.weight, weights.bias], 0.01)
        np.testing.assert_array_equal(layer.weight, want[0])
        np.testing.assert_array_equal(layer.bias, want[1])


def test_params_of_another_structure_are_refused():
    for other in (
        Pair(jnp.ones(1), None),
        [jnp.ones((2, 2)), jnp.ones(1)],
        Registered(jnp.ones((2, 2)), [jnp.ones(1)]),
    ):
        with pytest.raises(ValueError, match="params must have the structure of grads"):
            gradclip.clip_adaptive(Registered(jnp.asarray(W), jnp.asarray(B)), other)


@pytest.mark.parametrize("kind", ["FrozenDict", "chex", "flax.struct", "dataclass"])
def test_a_tree_of_thresholds_may_be_of_the_same_kind(kind):
    grads = KINDS[kind](jnp.asarray(W), jnp.asarray(B))
    clipped = gradclip.clip_by_norm(grads, KINDS[kind](1.0, 0.5))
    for got, want in zip(
        arrays(clipped), gradclip.clip_by_norm([jnp.asarray(W), jnp.asarray(B)], [1.0, 0.5]), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="max_norm must have the structure of grads"):
        gradclip.clip_by_norm(grads, Pair(1.0, 0.5))
    with pytest.raises(TypeError, match="max_norm must be a number"):
        gradclip.clip_by_norm(jnp.asarray(W), KINDS[kind](1.0, 0.5))
