import jax
import jax.numpy as jnp
import numpy as np
import optax
import wrong_label

import gradclip

params = wrong_label.start()
norms = []


def loss_of(params, x, y):
    return jnp.mean((model(params, x) - y) ** 2)


def model(params, x):
    for i in range(3):
        x = jax.nn.relu(x @ params[f"W{i}"] + params[f"b{i}"])
    return x @ params["W3"] + params["b3"]


# ---
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.045))
state = optimizer.init(params)


@jax.jit
def step(params, state, x, y):
    grads = jax.grad(loss_of)(params, x, y)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, gradclip.global_norm(grads)


for x, y in wrong_label.batches():
    params, state, norm = step(params, state, x, y)
    norms.append(float(norm))
# ---
prediction = np.asarray(model(params, wrong_label.GRID))
