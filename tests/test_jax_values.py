"""Where JAX and XLA would give another answer than the formula: numbers near the ends of a dtype, complex ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradclip

COMPILE = pytest.mark.parametrize("compile", [lambda f: f, jax.jit], ids=["eager", "jit"])


@COMPILE
@pytest.mark.parametrize(
    "clip",
    [
        lambda g: gradclip.clip_by_global_norm(g, 10.0).grads,
        lambda g: gradclip.clip_by_norm(g, 10.0),
        lambda g: gradclip.clip_by_norm(g, 10.0, axis=0),
        lambda g: gradclip.clip_by_value(g, 10.0),
        lambda g: gradclip.clip_adaptive(g, g, 1.0, eps=10.0),
    ],
)
def test_subnormal_numbers_within_the_limit_stay(clip, compile):
    g = jnp.asarray(np.array([1e-40, 1.0, -1e-45, 0.0], np.float32))
    assert np.asarray(compile(clip)(g)).tobytes() == np.asarray(g).tobytes()


@COMPILE
@pytest.mark.parametrize(
    ("weights", "factor", "eps", "want"),
    [
        (3e38, 1e-3, 1e-3, 3e35),  # the norm of the weights overflows
        (3e38, 0.0, 1e-3, 0.0),
        (3e38, 1.0, 1e-3, 3e38),
        (0.0, 1e-38, 1e38, 1 / np.sqrt(2)),  # the factor is subnormal, the limit 1
        (0.0, 1e-30, 1e30, 1 / np.sqrt(2)),
    ],
)
def test_adaptive_limits_do_not_overflow(weights, factor, eps, want, compile):
    g, w = jnp.full(2, 3e38, jnp.float32), jnp.full(2, weights, jnp.float32)
    clipped = compile(lambda g, w: gradclip.clip_adaptive(g, w, factor, eps=eps))(g, w)
    np.testing.assert_allclose(clipped, np.full(2, want), rtol=2e-6)


@COMPILE
def test_complex_numbers(compile):
    with jax.numpy_dtype_promotion("strict"):
        g = jnp.array([3 + 4j, 12j], jnp.complex64)
        clipped = compile(lambda g: gradclip.clip_by_global_norm(g, 1.3).grads)(g)
        np.testing.assert_allclose(clipped, np.array([0.3 + 0.4j, 1.2j]), rtol=1e-6)
        bad = compile(lambda g: gradclip.clip_by_global_norm(g, 1.3).grads)(g.at[0].set(jnp.inf))
        assert np.isnan(bad.real).all()
        assert np.isnan(bad.imag).all()
