import jax
import jax.numpy as jnp

params = jnp.ones(4)
x, y = 100 * jnp.ones((8, 4)), jnp.zeros(8)


def loss(params):
    return jnp.mean((x @ params - y) ** 2)


# ---
import optax

import gradclip.optax

optimizer = optax.chain(gradclip.optax.clip_by_global_norm(1.0), optax.sgd(0.1))
state = optimizer.init(params)
updates, state = optimizer.update(jax.grad(loss)(params), state, params)
params = optax.apply_updates(params, updates)
norm = state[0].norm
