"""Rule 12: functional forms run under every compiler and through every autograd. Rule 13: no wait for a GPU."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tensorflow as tf
import torch
from systems import SYSTEMS, bits, values

import gradclip

INF, NAN = math.inf, math.nan

RULES = {
    "global norm": lambda g: gradclip.clip_by_global_norm(g, 1.0),
    "global norm 3": lambda g: gradclip.clip_by_global_norm(g, 1.0, ord=3),
    "zero": lambda g: gradclip.clip_by_global_norm(g, 1.0, nonfinite="zero"),
    "keep": lambda g: gradclip.clip_by_global_norm(g, 1.0, nonfinite="keep"),
    "given": lambda g: gradclip.clip_by_global_norm(g, 1.0, norm=4.0),
    "norm": lambda g: gradclip.clip_by_norm(g, 1.0),
    "slices": lambda g: gradclip.clip_by_norm(g, 1.0, axis=0),
    "value": lambda g: gradclip.clip_by_value(g, 0.5),
    "adaptive": lambda g: gradclip.clip_adaptive(g, g, 0.5),
}

CASES = {
    "clipped": [[3.0, -4.0], [12.0, 0.0]],
    "unclipped": [[0.3, -0.4], [0.0, 0.1]],
    "zero": [[0.0, 0.0], [0.0, 0.0]],
    "huge": [[1e20, 2e20], [3e38, 0.0]],
    "overflowing": [[3e38, 3e38], [3e38, 0.0]],
    "tiny": [[1e-30, 1e-30], [0.0, 1e-25]],
    "infinite": [[INF, 1.0], [1.0, 0.0]],
    "nan": [[NAN, INF], [1.0, 0.0]],
}

COMPILERS = {
    "torch.compile": ("torch", functools.partial(torch.compile, fullgraph=True)),
    "tf.function": ("tensorflow", tf.function),
    "tf.function, XLA": ("tensorflow", functools.partial(tf.function, jit_compile=True)),
    "jax.jit": ("jax", jax.jit),
}
BY_NAME = {system.name: system for system in SYSTEMS}


@functools.cache
def compiled(compiler, rule):
    return COMPILERS[compiler][1](RULES[rule])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_is_eager(compiler, rule):
    system = BY_NAME[COMPILERS[compiler][0]]
    for raw in CASES.values():
        tree = {"w": system.array(raw), "b": (system.array(raw[0]), None)}
        eager = RULES[rule](tree)
        traced = compiled(compiler, rule)(tree)
        if isinstance(eager, gradclip.Clipped):
            np.testing.assert_allclose(float(traced.norm), float(eager.norm), rtol=1e-6)
            eager, traced = eager.grads, traced.grads
        for want, got in ((eager["w"], traced["w"]), (eager["b"][0], traced["b"][0])):
            np.testing.assert_allclose(values(got), values(want), rtol=1e-6, atol=1e-37)
        assert traced["b"][1] is None


@pytest.mark.parametrize("compiler", COMPILERS)
def test_within_the_threshold_nothing_changes_when_compiled(compiler):
    g = BY_NAME[COMPILERS[compiler][0]].array(CASES["unclipped"])
    for rule in ("global norm", "norm", "slices"):
        result = compiled(compiler, rule)(g)
        assert bits(result.grads if isinstance(result, gradclip.Clipped) else result) == bits(g)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_traced_threshold(compiler):
    name, compile = COMPILERS[compiler]
    system = BY_NAME[name]
    clip = compile(lambda g, c: gradclip.clip_by_global_norm(g, c).grads)
    g = system.array([3.0, 4.0])
    for c, want in (
        (1.0, [0.6, 0.8]),
        (10.0, [3, 4]),
        (0.0, [0, 0]),
        (INF, [3, 4]),
        (-1.0, [NAN] * 2),
        (NAN, [NAN] * 2),
    ):
        np.testing.assert_allclose(values(clip(g, system.array(c))), want, rtol=1e-6)


@pytest.mark.parametrize("room", [10, 1 << 22])
@pytest.mark.parametrize("shapes", [([None, 3], [None]), (None, [2, 3]), ([2, 3], [7])])
def test_tensorflow_graphs_that_do_not_know_the_shapes(monkeypatch, shapes, room):
    """Small arrays are joined, as long as there is room; arrays of unknown size never are."""
    monkeypatch.setattr("gradclip.backends.tensorflow.JOINED", room)
    signature = [[tf.TensorSpec(s, d) for s in shapes for d in (tf.float32, tf.float64)]]
    clip = tf.function(lambda grads: gradclip.clip_by_global_norm(grads, 1.0), input_signature=signature)
    known = [(2, 3), (2, 3) if shapes == (None, [2, 3]) else (7,)]
    raw = [np.arange(1.0, 1 + np.prod(s)).reshape(s) for s in known for _ in range(2)]
    clipped, norm = clip([tf.constant(r, spec.dtype) for r, spec in zip(raw, signature[0], strict=True)])
    want, exact = oracle.clip_by_global_norm(raw, 1.0), oracle.norm(raw)
    assert float(norm) == pytest.approx(exact, rel=1e-6)
    for own, theirs in zip(clipped, want, strict=True):
        assert own.shape == theirs.shape
        np.testing.assert_allclose(values(own), theirs, rtol=1e-6)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_raise_is_refused_at_trace_time(compiler):
    name, compile = COMPILERS[compiler]
    clip = compile(lambda g: gradclip.clip_by_global_norm(g, 1.0, nonfinite="raise"))
    # Dynamo reports an error of the code it traces as one of its own, with the message of the first.
    error = torch._dynamo.exc.TorchDynamoException if name == "torch" else ValueError
    with pytest.raises(error, match="cannot look at values while they are traced"):
        clip(BY_NAME[name].array([1.0]))


# Derivatives ---------------------------------------------------------------------------------------------------------


def derivative(name, rule, raw):
    """The derivative of Σ k·clipped[k] with respect to the gradient."""

    def total(g, arange):
        clipped = RULES[rule](g)
        clipped = clipped.grads if isinstance(clipped, gradclip.Clipped) else clipped
        return (clipped * arange).sum() if name != "tensorflow" else tf.reduce_sum(clipped * arange)

    weights = np.arange(1.0, 1 + np.size(raw)).reshape(np.shape(raw)).astype(np.float32)
    if name == "torch":
        g = torch.tensor(raw, requires_grad=True)
        return torch.autograd.grad(total(g, torch.tensor(weights)), g)[0].numpy()
    if name == "tensorflow":
        g = tf.constant(raw)
        with tf.GradientTape() as tape:
            tape.watch(g)
            loss = total(g, tf.constant(weights))
        return tape.gradient(loss, g).numpy()
    return np.asarray(jax.grad(total)(jnp.array(raw), jnp.array(weights)))


@pytest.mark.parametrize("rule", ["global norm", "global norm 3", "norm", "slices", "value", "zero", "keep", "given"])
@pytest.mark.parametrize("name", ["torch", "tensorflow", "jax"])
def test_the_derivative_is_that_of_the_formula(name, rule):
    def exact(g):
        if rule in ("norm", "slices"):
            return oracle.clip_by_norm(g, 1.0, axis=0 if rule == "slices" else None)
        if rule == "value":
            return np.clip(g, -0.5, 0.5)
        if rule == "given":
            return g / 4
        return oracle.clip_by_global_norm([g], 1.0, 3 if rule == "global norm 3" else 2)[0]

    for case in ("clipped", "unclipped"):
        raw = np.array(CASES[case]) + 0.01  # away from the corner of value clipping, and from |0|³
        weights = np.arange(1.0, 5.0).reshape(2, 2)
        steps = 1e-6 * np.eye(4).reshape(4, 2, 2)
        want = [((exact(raw + h) - exact(raw - h)) * weights).sum() / 2e-6 for h in steps]
        np.testing.assert_allclose(derivative(name, rule, raw.tolist()).ravel(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["torch", "tensorflow", "jax"])
def test_the_derivative_at_zero_is_finite(name, rule):
    for raw in (CASES["zero"], [[0.0, 0.0], [3.0, 4.0]]):
        assert np.isfinite(derivative(name, rule, raw)).all()
    if rule not in ("given", "adaptive"):
        np.testing.assert_array_equal(derivative(name, rule, CASES["zero"]), [[1, 2], [3, 4]])


@pytest.mark.parametrize("rule", [r for r in RULES if r not in ("value", "adaptive")])
def test_gradcheck(rule):
    for raw in (CASES["clipped"], CASES["unclipped"], CASES["zero"]):
        g = torch.tensor(raw, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(RULES[rule], g, eps=1e-7, atol=1e-5)


def test_the_norm_carries_a_derivative():
    g = torch.tensor([3.0, 4.0], requires_grad=True)
    np.testing.assert_allclose(torch.autograd.grad(gradclip.global_norm(g), g)[0], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(gradclip.global_norm)(jnp.array([3.0, 4.0])), [0.6, 0.8], rtol=1e-6)
    with tf.GradientTape() as tape:
        x = tf.constant([3.0, 4.0])
        tape.watch(x)
        norm = gradclip.global_norm(x)
    np.testing.assert_allclose(tape.gradient(norm, x), [0.6, 0.8], rtol=1e-6)


def test_in_place_forms_leave_no_trace_in_autograd():
    w = torch.ones(2, requires_grad=True)
    (g,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
    norm = gradclip.clip_by_global_norm_(g, 1.0)
    assert not norm.requires_grad
    np.testing.assert_allclose(g.detach(), np.sqrt([0.5, 0.5]), rtol=1e-6)


# Per example ---------------------------------------------------------------------------------------------------------


def test_vmap_clips_each_example():
    batch = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [1e20, 2e20]], np.float32)
    want = oracle.clip_by_norm(batch.astype(float), 1.0, axis=1)

    def clip(g):
        return gradclip.clip_by_global_norm({"w": g}, 1.0).grads["w"]

    np.testing.assert_allclose(torch.func.vmap(clip)(torch.tensor(batch)), want, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(clip)(jnp.array(batch)), want, rtol=1e-6)
    np.testing.assert_allclose(tf.vectorized_map(clip, tf.constant(batch)), want, rtol=1e-6)


# Rule 13 -------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("nonfinite", ["nan", "zero", "keep"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rule_13_no_host_sync(dtype, nonfinite):
    tensors = [torch.randn(1000, device="cuda").to(dtype), torch.randn(30, 40, device="cuda").to(dtype).T]
    threshold = torch.tensor(0.5, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for c in (1.0, 0, INF, threshold):
            gradclip.clip_by_global_norm(tensors, c, nonfinite=nonfinite)
            gradclip.clip_by_global_norm_(tensors, c, nonfinite=nonfinite)
            gradclip.clip_by_norm(tensors, c)
            gradclip.clip_by_norm_(tensors, c)
            gradclip.clip_by_value_(tensors, c)
            gradclip.clip_adaptive_(tensors, [t * 0 for t in tensors])
    finally:
        torch.cuda.set_sync_debug_mode("default")
