"""gradclip.keras on one backend of Keras, TensorFlow by default; the last test runs the rest on the others."""

import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import keras
import numpy as np
import pytest

import gradclip
from gradclip.keras import ClippedOptimizer

BACKEND = keras.backend.backend()
# Keras converts its variables to NumPy in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 3)).astype("float32")
Y = X @ np.float32([[1], [-2], [3]]) * 10
WORDS = RNG.integers(0, 5, (32, 4))  # every batch repeats some


@keras.saving.register_keras_serializable("tests")
def clip(grads):
    return gradclip.clip_by_global_norm(grads, 0.5).grads


@keras.saving.register_keras_serializable("tests")
class ByNorm:
    """A rule with a setting, which is saved with it."""

    def __init__(self, max_norm):
        self.max_norm = max_norm

    def __call__(self, grads):
        return gradclip.clip_by_norm(grads, self.max_norm)

    def get_config(self):
        return {"max_norm": self.max_norm}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def dense():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])


def fit(optimizer, *, model=None, x=X, epochs=3, **options):
    """A model after some steps that all need clipping."""
    model = model or dense()
    model.compile(optimizer, "mse", **options)
    model.fit(x, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model


def weights(model):
    return [keras.ops.convert_to_numpy(w) for w in model.weights]


def assert_same(model, other):
    for a, b in zip(weights(model), weights(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def step(optimizer, *grads):
    """How far one step moves variables that start at 1."""
    variables = [keras.Variable(np.ones_like(g)) for g in grads]
    optimizer.apply([keras.ops.array(g) for g in grads], variables)
    return [keras.ops.convert_to_numpy(v) - 1 for v in variables]


# A run is that of Keras' own clipping ---------------------------------------------------------------------------------


def own_and_ours(settings=None, **options):
    """A run with Keras' own clipping, and one with ours."""
    settings = settings or {}
    own = fit(keras.optimizers.SGD(0.1, global_clipnorm=0.5, **settings), **options)
    return own, fit(ClippedOptimizer(keras.optimizers.SGD(0.1, **settings), clip), **options)


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9, "weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 5},
        {"gradient_accumulation_steps": 2, "loss_scale_factor": 64.0},
    ],
    ids=" ".join,
)
def test_the_inner_optimizer_works_as_it_would_by_itself(settings):
    assert_same(*own_and_ours(settings))


# By default Keras compiles with XLA on JAX, and on TensorFlow where it can; on PyTorch it does not compile.
HOW = [{"run_eagerly": True}, {"jit_compile": True}, {"jit_compile": False}]


@pytest.mark.parametrize("how", HOW if BACKEND == "tensorflow" else HOW[:1], ids=str)
def test_eager_and_compiled(how):
    assert_same(*own_and_ours(**how))


def test_a_loss_scale_goes_outside():
    def scaled(inner):
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=256.0, dynamic_growth_steps=4)

    own = fit(scaled(keras.optimizers.SGD(0.1, global_clipnorm=0.5)))
    inner = keras.optimizers.SGD(0.1, loss_scale_factor=8.0)  # which the outer one switches off
    assert_same(fit(scaled(ClippedOptimizer(inner, clip))), own)
    assert inner.loss_scale_factor is None
    with pytest.raises(TypeError, match="got a LossScaleOptimizer, which hands them on"):
        ClippedOptimizer(scaled(keras.optimizers.SGD()), clip)


def embedding():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential([keras.Input((4,)), layers.Embedding(20, 3), layers.Flatten(), layers.Dense(1)])


def test_an_embedding():
    """On TensorFlow its gradient is sparse, with a row for each word, where words repeat."""
    model = fit(ClippedOptimizer(keras.optimizers.SGD(1.0), clip), model=embedding(), x=WORDS, epochs=1)
    dense_words = np.eye(20, dtype="float32")[WORDS]
    keras.utils.set_random_seed(0)
    other = keras.Sequential([keras.Input((4, 20)), keras.layers.Dense(3, use_bias=False), keras.layers.Flatten()])
    other.add(keras.layers.Dense(1))
    other.set_weights(embedding().get_weights())
    fit(ClippedOptimizer(keras.optimizers.SGD(1.0), clip), model=other, x=dense_words, epochs=1)
    assert_same(model, other)


def test_variables_without_a_gradient():
    def two_heads():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        used, unused = keras.layers.Dense(1)(inputs), keras.layers.Dense(1, name="unused")(inputs)
        return keras.Model(inputs, {"used": used, "unused": unused})

    def run(optimizer):
        model = two_heads()
        model.compile(optimizer, {"used": "mse"})
        model.fit(X, {"used": Y}, epochs=1, shuffle=False, verbose=0)
        return model

    def both():
        assert_same(
            run(ClippedOptimizer(keras.optimizers.SGD(0.1), clip)), run(keras.optimizers.SGD(0.1, global_clipnorm=0.5))
        )

    if BACKEND == "jax":  # there, the gradient of an unused variable is zeros
        both()
    else:
        with pytest.warns(UserWarning, match="Gradients do not exist for variables .*unused"):
            both()


# What it adds ---------------------------------------------------------------------------------------------------------


def test_any_rule():
    sgd = keras.optimizers.SGD
    g = np.float32([3, 4]), np.float32([0, 0.5])
    for rule, want in (
        (lambda grads: gradclip.clip_by_value(grads, 1.0), ([-1, -1], [0, -0.5])),
        (ByNorm(1.0), ([-0.6, -0.8], [0, -0.5])),
        (lambda grads: gradclip.clip_by_global_norm(grads, 1.0, ord=1).grads, ([-0.4, -0.533333], [0, -0.066667])),
    ):
        for got, expected in zip(step(ClippedOptimizer(sgd(1.0), rule), *g), want, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_step_that_is_not_finite_can_be_passed_over():
    def rule(grads):
        return gradclip.clip_by_global_norm(grads, 1.0, nonfinite="zero").grads

    bad = np.float32([1, np.inf]), np.float32([2])
    for got in step(ClippedOptimizer(keras.optimizers.SGD(1.0), rule), *bad):
        assert (got == 0).all()
    for got in step(keras.optimizers.SGD(1.0, global_clipnorm=1.0), *bad):
        assert np.isnan(got).all()


# The inner optimizer is within reach ----------------------------------------------------------------------------------


def test_the_learning_rate_is_the_inner_ones():
    optimizer = ClippedOptimizer(keras.optimizers.SGD(0.25), clip)
    assert float(optimizer.learning_rate) == 0.25
    optimizer.learning_rate = 0.5
    assert float(optimizer.inner_optimizer.learning_rate) == 0.5
    assert float(np.linalg.norm(step(optimizer, np.float32([3, 4]))[0])) == pytest.approx(0.25)
    decaying = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)
    optimizer = ClippedOptimizer(keras.optimizers.SGD(decaying), clip)
    assert float(optimizer.learning_rate) == 1.0
    step(optimizer, np.float32([3, 4]))
    assert float(optimizer.learning_rate) == 0.5


def test_callbacks_set_the_learning_rate():
    model = dense()
    optimizer = ClippedOptimizer(keras.optimizers.SGD(1.0), clip)
    model.compile(optimizer, "mse")
    seen = []
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2 if epoch else rate),
        keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.1, patience=1, cooldown=9, min_delta=1e9),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(float(optimizer.learning_rate))),
    ]
    model.fit(X, Y, epochs=3, verbose=0, callbacks=callbacks)
    assert seen == pytest.approx([1.0, 0.05, 0.025])


def test_steps_are_counted():
    optimizer = ClippedOptimizer(keras.optimizers.SGD(0.1), clip)
    fit(optimizer, epochs=2)
    assert int(optimizer.iterations) == 8
    variable = keras.Variable([0.0])
    optimizer = ClippedOptimizer(keras.optimizers.SGD(0.1), clip)
    assert int(optimizer.apply_gradients([(keras.ops.array([1.0]), variable)])) == 1


def test_weight_decay_leaves_out_what_it_is_told_to():
    optimizer = ClippedOptimizer(keras.optimizers.SGD(1.0, weight_decay=0.5), lambda grads: [g * 0 for g in grads])
    kernel, bias = keras.Variable([1.0], name="kernel"), keras.Variable([1.0], name="bias")
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply([keras.ops.array([1.0])] * 2, [kernel, bias])
    assert [keras.ops.convert_to_numpy(v)[0] for v in (kernel, bias)] == [0.5, 1.0]


def test_a_callback_evaluates_the_averaged_weights():
    losses = []
    for callbacks in ([], [keras.callbacks.SwapEMAWeights()]):
        model = dense()
        model.compile(ClippedOptimizer(keras.optimizers.SGD(0.1, use_ema=True), clip), "mse")
        run = model.fit(X, Y, batch_size=8, validation_data=(X, Y), verbose=0, callbacks=callbacks)
        losses.append(run.history["val_loss"][0])
    assert losses[0] < losses[1] * 0.999  # the average lags behind


def test_an_optimizer_that_has_run_before_keeps_its_state():
    variables = [keras.Variable([1.0, 1.0])]
    inner = keras.optimizers.Adam(0.1)
    inner.apply([keras.ops.array([3.0, 4.0])], variables)
    optimizer = ClippedOptimizer(inner, clip)
    assert not optimizer.built
    optimizer.build(variables)
    assert optimizer.built
    assert int(optimizer.iterations) == 1
    assert len(optimizer.variables) == 4
    built_by_applying = ClippedOptimizer(keras.optimizers.Adam(0.1), clip)
    built_by_applying.apply([keras.ops.array([3.0, 4.0])], variables)
    assert built_by_applying.built


# Saved and loaded -----------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_a_file_as_if_nothing_had_happened(tmp_path):
    def new():
        return ClippedOptimizer(keras.optimizers.Adam(0.05), ByNorm(0.25), name="clipped_adam")

    straight = fit(new(), epochs=4)
    model = fit(new(), epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, ClippedOptimizer)
    assert loaded.optimizer.name == "clipped_adam"
    assert int(loaded.optimizer.iterations) == 8
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables) == 10
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
    loaded.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert_same(loaded, straight)


def test_a_file_holds_a_function_by_its_name_and_the_state_once(tmp_path):
    model = dense()
    model.compile(ClippedOptimizer(keras.optimizers.Adam(0.05), clip), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").optimizer.clip is clip
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        assert len(file["optimizer/inner_optimizer/vars"]) == 10
        assert len(file["optimizer/vars"]) == 0


def test_config_round_trip():
    optimizer = ClippedOptimizer(keras.optimizers.SGD(0.25, momentum=0.5), ByNorm(2.0), name="mine")
    config = optimizer.get_config()
    for _ in range(2):  # reading a configuration leaves it as it was
        again = ClippedOptimizer.from_config(config)
        assert again.name == "mine"
        assert again.clip.max_norm == 2.0
        assert again.inner_optimizer.momentum == 0.5
        assert again.get_config() == config
    described = keras.optimizers.serialize(optimizer)
    assert described["registered_name"] == "gradclip>ClippedOptimizer"
    assert keras.optimizers.deserialize(described).get_config() == config

    def mine(grads):
        return grads

    config = ClippedOptimizer(keras.optimizers.SGD(), mine).get_config()
    assert ClippedOptimizer.from_config(config, custom_objects={"mine": mine}).clip is mine


# What it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_two_clips_are_refused(kind):
    with pytest.raises(ValueError, match=rf"inner clips already, by {{'{kind}': 1.0}}"):
        ClippedOptimizer(keras.optimizers.SGD(**{kind: 1.0}), clip)
    with pytest.raises(TypeError, match="got a ClippedOptimizer, which hands them on"):
        ClippedOptimizer(ClippedOptimizer(keras.optimizers.SGD(), clip), clip)


@pytest.mark.parametrize("inner", ["sgd", None, keras.optimizers.SGD])
def test_what_is_no_optimizer_is_refused(inner):
    with pytest.raises(TypeError, match="inner must be a Keras optimizer, got"):
        ClippedOptimizer(inner, clip)


def test_what_is_no_rule_is_refused():
    with pytest.raises(TypeError, match=r"clip must map a list of gradients to a list of gradients, got 1\.0"):
        ClippedOptimizer(keras.optimizers.SGD(), 1.0)
    for rule, got in (
        (lambda grads: gradclip.clip_by_global_norm(grads, 1.0), "a Clipped"),
        (lambda grads: grads[1:], "a list of 1"),
        (lambda grads: None, "a NoneType"),
    ):
        with pytest.raises(TypeError, match=rf"clip must return a list of 2 gradients, got {got} .*take \.grads"):
            step(ClippedOptimizer(keras.optimizers.SGD(), rule), np.float32([1]), np.float32([2]))


# The other backends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", sorted({"tensorflow", "jax", "torch"} - {BACKEND}))
def test_other_backends(other):
    """Keras has one backend per process."""
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"KERAS_BACKEND": other}
    run = subprocess.run([*command, "-k", "not test_other_backends"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
