"""JAX: clip all gradients by their joint norm, in a step of one's own."""

import jax
import jax.numpy as jnp

params = {"w": jnp.zeros(2)}
batches = [jnp.array([3.0, 4.0])]


def loss_of(params, y):
    return jnp.sum(params["w"] * y)


# [start]
import gradclip


@jax.jit
def step(params, y):
    grads = jax.grad(loss_of)(params, y)
    grads, norm = gradclip.clip_by_global_norm(grads, 1.0)
    return jax.tree.map(lambda p, g: p - g, params, grads), norm


for y in batches:
    params, norm = step(params, y)
# [end]
