"""JAX with optax: the norm before clipping stands in the state."""

import jax
import jax.numpy as jnp
import optax

params = {"w": jnp.zeros(2)}
batches = [jnp.array([3.0, 4.0])]


def loss_of(params, y):
    return jnp.sum(params["w"] * y)


# [start]
import gradclip.optax
from gradclip import NormHistory

history = NormHistory()
optimizer = optax.chain(gradclip.optax.clip_by_global_norm(1.0), optax.sgd(1.0))
state = optimizer.init(params)


@jax.jit
def step(params, state, y):
    grads = jax.grad(loss_of)(params, y)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


for y in batches:
    params, state = step(params, state, y)
    history.record(state[0].norm, max_norm=1.0)  # the clip comes first in the chain
print(history.summary())
# [end]
