"""Rule 16 in TensorFlow and JAX: on gradients spread over devices, the norm is that of the whole gradient.

A framework counts its devices when it starts, so each scenario, a function of this file, runs in a process of its own.
"""

import os
import subprocess
import sys

import pytest

SCENARIOS = ("replicas", "keras_model", "sharded_arrays", "shards", "a_state_in_a_loop")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_rule_16(scenario):
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, scenario]
    run = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]


def two_replicas():
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def replicas():
    """Inside a replica, gradients that were summed are clipped by the norm of the sum, the same on each replica."""
    import numpy as np
    import tensorflow as tf

    import gradclip

    strategy = two_replicas()
    own = np.float32([[3, 0, -1], [0, 4, 1]])  # the gradient of each replica

    def clip_in_a_replica(summed_first):
        replica = tf.distribute.get_replica_context()
        grads = [tf.gather(own, replica.replica_id_in_sync_group)]
        if summed_first:
            grads = replica.all_reduce("sum", grads)
        return gradclip.clip_by_global_norm(grads, 1.0)

    for run in (strategy.run, tf.function(strategy.run)):
        clipped, norm = run(clip_in_a_replica, [True])
        assert [float(n) for n in norm.values] == [5.0, 5.0]
        for own_copy in clipped[0].values:
            np.testing.assert_allclose(own_copy, [0.6, 0.8, 0], rtol=1e-6)
        norms = run(clip_in_a_replica, [False]).norm.values  # the wrong way: before the sum
        assert all(float(n) < 4.2 for n in norms)


def keras_model():
    """Trained on two replicas or on one, a model comes out the same. With Keras' own clipping it does not."""
    import contextlib

    import keras
    import numpy as np

    import gradclip
    from gradclip.keras import ClippedOptimizer

    strategy = two_replicas()
    x = np.random.default_rng(0).standard_normal((32, 3)).astype("float32")
    y = x @ np.float32([[1], [-2], [3]]) * 10

    def clip(grads):
        return gradclip.clip_by_global_norm(grads, 0.5).grads

    def trained(optimizer, scope):
        with scope:
            keras.utils.set_random_seed(0)
            layers = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)]
            model = keras.Sequential([keras.Input((3,)), *layers])
            model.compile(optimizer(), "mse")
        model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        return np.concatenate([w.ravel() for w in model.get_weights()])

    def ours():
        return ClippedOptimizer(keras.optimizers.SGD(0.1), clip)

    def keras_own():
        return keras.optimizers.SGD(0.1, global_clipnorm=0.5)

    alone = trained(ours, contextlib.nullcontext())
    np.testing.assert_allclose(trained(keras_own, contextlib.nullcontext()), alone, atol=1e-6)
    np.testing.assert_allclose(trained(ours, strategy.scope()), alone, atol=1e-6)
    assert np.abs(trained(keras_own, strategy.scope()) - alone).max() > 0.01


def mesh_and_arrays(kind):
    """Arrays spread over 4×2 devices, each in another way, and the same on the host."""
    import jax
    import numpy as np

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    spec = jax.sharding.PartitionSpec
    specs = {"w": spec("data", "model"), "v": spec("model", None), "b": spec("data"), "wide": spec("data"), "s": spec()}
    shapes = {"w": (64, 128), "v": (128, 64), "b": (64,), "wide": (512, 1024), "s": (3,)}
    random = np.random.default_rng(0)
    host = {name: random.standard_normal(shapes[name]).astype("float32") for name in specs}
    own = {name: jax.device_put(host[name], jax.sharding.NamedSharding(mesh, specs[name])) for name in specs}
    return mesh, specs, host, own


def sharded_arrays():
    """Every rule sees whole arrays, and leaves each where it was; axes may be the compiler's or the user's to place."""
    import jax
    import numpy as np

    import gradclip

    rules = [
        lambda g: gradclip.clip_by_global_norm(g, 1.0),
        lambda g: gradclip.clip_by_global_norm(g, 1.0, ord=3),
        lambda g: gradclip.clip_by_norm(g, 1.0),
        lambda g: gradclip.clip_by_norm(g, 1.0, axis=0),
        lambda g: gradclip.clip_by_value(g, 0.5),
        lambda g: gradclip.clip_adaptive(g, g, 0.1),
    ]
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        _, _, host, own = mesh_and_arrays(kind)
        for rule in rules:
            want, eager, traced = rule(host), rule(own), jax.jit(rule)(own)
            if isinstance(want, gradclip.Clipped):
                assert np.isclose(eager.norm, want.norm, rtol=1e-6)
                assert np.isclose(traced.norm, want.norm, rtol=1e-6)
                want, eager, traced = want.grads, eager.grads, traced.grads
            for name in host:
                np.testing.assert_allclose(eager[name], want[name], rtol=2e-6)
                np.testing.assert_allclose(traced[name], want[name], rtol=2e-6)
                for result in (eager, traced):
                    assert result[name].sharding.is_equivalent_to(own[name].sharding, own[name].ndim)


def a_state_in_a_loop():
    """The state that init makes has the sharding of the one that update gives, so that a loop can carry it."""
    import jax
    import jax.numpy as jnp

    import gradclip.optax

    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh, _, _, own = mesh_and_arrays(kind)
        with jax.set_mesh(mesh):
            for rule in (gradclip.optax.clip_by_norm(1.0, axis=0), gradclip.optax.clip_by_global_norm(1.0)):
                grads = {name: own[name] for name in ("w", "v", "b")}

                @jax.jit
                def loop(grads, rule=rule):
                    step = lambda state, _: (rule.update(grads, state)[1], None)  # noqa: E731
                    return jax.lax.scan(step, rule.init(grads), jnp.arange(3))[0]

                for got, want in zip(
                    jax.tree.leaves(loop(grads)), jax.tree.leaves(rule.update(grads, None)[1]), strict=True
                ):
                    assert jnp.allclose(got, want, rtol=1e-6)


def shards():
    """Inside jax.shard_map an array is a shard: its norm is a share of the whole one, which is then handed in."""
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    import gradclip

    mesh, specs, host, own = mesh_and_arrays(jax.sharding.AxisType.Auto)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(specs,), out_specs=(specs, jax.sharding.PartitionSpec()))
    def clip(grads):
        squares = 0.0
        for name, g in grads.items():
            axes = tuple(axis for axis in specs[name] if axis)
            square = jnp.square(gradclip.global_norm(g))
            squares += jax.lax.psum(square, axes) if axes else square
        clipped, norm = gradclip.clip_by_global_norm(grads, 1.0, norm=jnp.sqrt(squares))
        return clipped, norm

    clipped, norm = clip(own)
    want = gradclip.clip_by_global_norm(host, 1.0)
    assert np.isclose(norm, want.norm, rtol=1e-6)
    for name in host:
        np.testing.assert_allclose(clipped[name], want.grads[name], rtol=2e-6)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
