"""JAX with optax: MultiSteps outside, so that the mean of the micro-batches is clipped once."""

import jax
import jax.numpy as jnp
import optax

params = {"w": jnp.zeros(2)}
batches = [jnp.array([3.0, 4.0])]
micro_batches = 4
batches *= micro_batches


def loss_of(params, y):
    return jnp.sum(params["w"] * y)


# [start]
import gradclip.optax

optimizer = optax.MultiSteps(
    optax.chain(gradclip.optax.clip_by_global_norm(1.0), optax.sgd(1.0)), every_k_schedule=micro_batches
)
state = optimizer.init(params)


@jax.jit
def step(params, state, y):
    grads = jax.grad(loss_of)(params, y)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


for y in batches:
    params, state = step(params, state, y)
# [end]
