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


@pytest.mark.parametrize("ord", [1, 1.5, 2, 3, np.inf])
def test_derivatives_at_zero_are_zero(ord):
    norm = lambda x: gradclip.global_norm(x, ord=ord)  # noqa: E731
    zero = jnp.zeros(2)
    first, forward, second = jax.jit(lambda x: (jax.grad(norm)(x), jax.jacfwd(norm)(x), jax.hessian(norm)(x)))(zero)
    for derivative in (first, forward, second):
        np.testing.assert_array_equal(derivative, np.zeros(derivative.shape))


@pytest.mark.parametrize("axis", [None, 0])
def test_factors_between_norms_and_thresholds_far_apart(axis):
    """Neither the quotient of two normal numbers nor a part of it is lost, though it be no normal number itself."""
    sizes = 2.0 ** np.arange(-110, 126, 34)
    grads = [jnp.asarray(np.float32([3.0, 4.0]) * np.float32(size)) for size in sizes]

    def clip(grads, c):
        by_norm = gradclip.clip_by_norm(grads, c, axis=axis)
        return by_norm, gradclip.clip_adaptive(grads, [jnp.full(2, c / np.sqrt(2))] * len(grads), 1.0, eps=0.0)

    clip = jax.jit(clip)
    for c in 2.0 ** np.arange(-110.0, 120.0, 46):
        for clipped in clip(grads, jnp.float32(c)):
            for got, size in zip(clipped, sizes, strict=True):
                want = np.array([3.0, 4.0]) * min(size, c / 5)
                np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2e-6)


def test_double_precision_where_it_is_switched_off_is_refused():
    """JAX would convert such an array to float32 at the first step: 1e200 would become infinite, and the result NaN."""
    for dtype in ("float64", "complex128"):
        with jax.enable_x64(True):
            g = jnp.asarray([1e200, 2e200], dtype)
            assert float(gradclip.global_norm(g)) == pytest.approx(np.sqrt(5) * 1e200)
        with pytest.raises(TypeError, match=rf"grads has dtype {dtype} while jax_enable_x64 is off"):
            gradclip.global_norm(g)
        assert not np.isnan(g).any()
