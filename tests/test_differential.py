"""gradclip beside the frameworks' own functions: equal where their semantics agree, different where they are known so.

A difference is asserted, not allowed for: if a framework mends one, its test fails, and the book has to be changed.
"""

import math

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import tensorflow as tf
import torch

import gradclip

INF, NAN = math.inf, math.nan
RNG = np.random.default_rng(0)
GRADS = [RNG.standard_normal(shape).astype(np.float32) for shape in ((20, 30), (30,), (5, 4, 3), ())]
NORM = float(gradclip.global_norm(GRADS))


def by_torch(grads, max_norm, **options):
    tensors = [torch.tensor(np.asarray(g)) for g in grads]
    parameters = [torch.nn.Parameter(torch.zeros_like(t)) for t in tensors]
    for p, t in zip(parameters, tensors, strict=True):
        p.grad = t
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, **options)
    return [p.grad.numpy() for p in parameters], float(norm)


def by_tensorflow(grads, max_norm):
    clipped, norm = tf.clip_by_global_norm([tf.constant(g) for g in grads], max_norm)
    return [c.numpy() for c in clipped], float(norm)


def by_optax(grads, max_norm):
    rule = optax.clip_by_global_norm(max_norm)
    return [np.asarray(g) for g in rule.update([jnp.asarray(g) for g in grads], rule.init(None))[0]], None


def by_keras(grads, max_norm, kind="global_clipnorm"):
    """The step of plain gradient descent with learning rate 1 is the clipped gradient."""
    optimizer = keras.optimizers.SGD(1.0, **{kind: max_norm})
    variables = [keras.Variable(np.zeros_like(g)) for g in grads]
    optimizer.apply_gradients(zip([tf.constant(g) for g in grads], variables, strict=True))
    return [-np.asarray(v) for v in variables], None


def by_gradclip(grads, max_norm, **options):
    clipped, norm = gradclip.clip_by_global_norm(list(grads), max_norm, **options)
    return clipped, float(norm)


OTHERS = {"torch": by_torch, "tensorflow": by_tensorflow, "optax": by_optax, "keras": by_keras}


def f32(*values):
    return [np.array(values, np.float32)]


# Where they agree ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("share", [1e-3, 0.5, 0.99, 1.01, 1e3])
def test_they_agree_away_from_the_threshold(other, share):
    want, norm = by_gradclip(GRADS, NORM * share)
    got, its_norm = other(GRADS, NORM * share)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
    if its_norm is not None:
        assert its_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("ord", [0.5, 1.0, 1.5, 2.0, 4.0, INF])
def test_torch_agrees_in_every_order(ord):
    want, norm = by_gradclip(GRADS, 2.0, ord=ord)
    got, its_norm = by_torch(GRADS, 2.0, norm_type=ord)
    assert its_norm == pytest.approx(norm, rel=1e-5)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)


@pytest.mark.parametrize("axes", [None, 0, 1])
def test_tensorflow_agrees_array_by_array(axes):
    g = GRADS[0]
    want = gradclip.clip_by_norm(tf.constant(g), 2.0, axis=axes)
    np.testing.assert_allclose(tf.clip_by_norm(g, 2.0, axes=axes), want, rtol=2e-6)


def test_keras_clipnorm_is_clip_by_norm():
    got, _ = by_keras(GRADS[:3], 2.0, kind="clipnorm")
    for a, b in zip(got, gradclip.clip_by_norm(GRADS[:3], 2.0), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_clipping_by_value_agrees():
    g = np.linspace(-5, 5, 41, dtype=np.float32)
    want = gradclip.clip_by_value(g, 2.5)
    parameter = torch.nn.Parameter(torch.zeros(41))
    parameter.grad = torch.tensor(g)
    torch.nn.utils.clip_grad_value_([parameter], 2.5)
    rule = optax.clip(2.5)
    by_optax_clip = rule.update(jnp.asarray(g), rule.init(None))[0]
    for got in (parameter.grad, tf.clip_by_value(g, -2.5, 2.5), by_optax_clip, by_keras([g], 2.5, "clipvalue")[0][0]):
        np.testing.assert_array_equal(np.asarray(got), want)


# Where they part -----------------------------------------------------------------------------------------------------

# The factor on a finite element, by the norm of the gradient and the threshold: what each framework makes of it.
FACTORS = [
    # norm, threshold, PyTorch, TensorFlow, optax, gradclip
    (5.0, 4.0, 0.79999983, 0.8, 0.8, 0.8),
    (1.0, 1.0, 0.999999, 1.0, 1.0, 1.0),
    (1e-3, 1e-3, 0.9990, 1.0, 1.0, 1.0),
    (1e-6, 1e-6, 0.5, 1.0, 1.0, 1.0),
    (5.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (5.0, INF, 1.0, NAN, 1.0, 1.0),
    (5.0, -1.0, -0.2, 1.0, -0.2, ValueError),
    (5.0, NAN, NAN, NAN, NAN, ValueError),
]


@pytest.mark.parametrize(("norm", "max_norm", "torchs", "tensorflows", "optaxs", "ours"), FACTORS)
def test_factors(norm, max_norm, torchs, tensorflows, optaxs, ours):
    g = f32(norm * 0.6, norm * 0.8)
    norm = float(gradclip.global_norm(g))
    max_norm = norm if max_norm == pytest.approx(norm) else max_norm
    for clip, want in ((by_torch, torchs), (by_tensorflow, tensorflows), (by_optax, optaxs)):
        np.testing.assert_allclose(clip(g, max_norm)[0][0] / g[0], want, rtol=2e-5)
    if ours is ValueError:
        with pytest.raises(ValueError, match="max_norm must be"):
            by_gradclip(g, max_norm)
    else:
        np.testing.assert_allclose(by_gradclip(g, max_norm)[0][0] / g[0], ours, rtol=1e-6)


def test_torch_shrinks_at_the_threshold_and_gradclip_does_not():
    g = f32(0.6, 0.8)
    assert (by_torch(g, 1.0)[0][0] < g[0]).all()
    np.testing.assert_array_equal(by_gradclip(g, 1.0)[0][0], g[0])


@pytest.mark.parametrize(
    ("other", "answer"), [(by_torch, [0, 0]), (by_tensorflow, [NAN, NAN]), (by_optax, [0, 0]), (by_keras, [NAN, NAN])]
)
def test_finite_gradients_whose_squares_overflow(other, answer):
    g = f32(1e20, 2e20)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(other(g, 1.0)[0][0], answer)
    np.testing.assert_allclose(by_gradclip(g, 1.0)[0][0], [0.4472136, 0.8944272], rtol=1e-6)


def test_half_precision_overflows():
    g = [np.full(4, 40000, np.float16)]
    np.testing.assert_array_equal(by_torch(g, 1.0)[0][0], np.zeros(4))
    np.testing.assert_array_equal(by_tensorflow(g, 1.0)[0][0], np.full(4, NAN))
    np.testing.assert_array_equal(by_gradclip(g, 1.0)[0][0], np.full(4, 0.5))


def test_squares_that_vanish():
    g = f32(1e-30, 1e-30)
    assert by_torch(g, 1.0)[1] == by_tensorflow(g, 1.0)[1] == float(optax.tree.norm([jnp.asarray(g[0])])) == 0
    assert by_gradclip(g, 1.0)[1] == pytest.approx(math.sqrt(2) * 1e-30, rel=1e-6)


def test_zero_gradients_and_threshold_zero():
    g = f32(0.0, 0.0)
    np.testing.assert_array_equal(by_tensorflow(g, 0.0)[0][0], [NAN, NAN])
    np.testing.assert_array_equal(by_optax(g, 0.0)[0][0], [NAN, NAN])
    np.testing.assert_array_equal(by_torch(g, 0.0)[0][0], [0, 0])
    np.testing.assert_array_equal(by_gradclip(g, 0.0)[0][0], [0, 0])


def test_an_infinite_gradient():
    g = f32(INF, 1.0)
    np.testing.assert_array_equal(by_torch(g, 1.0)[0][0], [NAN, 0])  # half of the gradient is lost, silently
    np.testing.assert_array_equal(by_optax(g, 1.0)[0][0], [NAN, 0])
    np.testing.assert_array_equal(by_tensorflow(g, 1.0)[0][0], [NAN, NAN])
    np.testing.assert_array_equal(by_gradclip(g, 1.0)[0][0], [NAN, NAN])
    np.testing.assert_array_equal(by_gradclip(g, 1.0, nonfinite="zero")[0][0], [0, 0])


def test_keras_clipnorm_is_not_the_global_norm():
    w, b = np.array([3.0, 4.0], np.float32), np.array([12.0], np.float32)
    per_variable, _ = by_keras([w, b], 1.0, kind="clipnorm")
    whole, _ = by_keras([w, b], 1.0)
    joined, unclipped = np.concatenate(per_variable), np.concatenate([w, b])
    assert np.linalg.norm(joined) == pytest.approx(math.sqrt(2), rel=1e-6)
    cosine = joined @ unclipped / np.linalg.norm(joined) / np.linalg.norm(unclipped)
    assert math.degrees(math.acos(cosine)) == pytest.approx(22.4, abs=0.05)
    for got, want in zip(whole, by_gradclip([w, b], 1.0)[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.parametrize("limit", [0.0, -1.0, NAN])
def test_keras_switches_clipping_off_without_a_word(limit):
    np.testing.assert_array_equal(by_keras(f32(3.0, 4.0), limit)[0][0], [3, 4])


def test_torch_counts_and_scales_tied_parameters_twice():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    norm = torch.nn.utils.clip_grad_norm_([p, p], 1.0)
    assert float(norm) == pytest.approx(5 * math.sqrt(2))
    np.testing.assert_allclose(p.grad, np.array([0.6, 0.8]) / 10, rtol=1e-5)
    p.grad = torch.tensor([3.0, 4.0])
    assert float(gradclip.clip_by_global_norm_([p.grad, p.grad], 1.0)) == 5.0
    np.testing.assert_allclose(p.grad, [0.6, 0.8], rtol=1e-6)


def test_torchs_norm_of_a_large_array_drifts():
    g = torch.full((10_000_000,), 0.1)
    exact = float(g[0].double()) * math.sqrt(g.numel())
    assert abs(float(torch.nn.utils.get_total_norm([g])) / exact - 1) > 1e-4
    assert float(gradclip.global_norm(g)) == pytest.approx(exact, rel=1e-6)


def test_every_framework_rewrites_gradients_that_need_no_clipping():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    version = p.grad._version
    torch.nn.utils.clip_grad_norm_([p], 100.0)
    assert p.grad._version > version
    version = p.grad._version
    gradclip.clip_by_global_norm_([p.grad], 100.0)
    assert p.grad._version == version
