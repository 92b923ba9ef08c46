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


# Inside Keras' own wrappers and callbacks -----------------------------------------------------------------------------

SETTINGS = {
    "weight_decay": 0.1,
    "use_ema": True,
    "ema_momentum": 0.8,
    "ema_overwrite_frequency": 5,
    "loss_scale_factor": 64.0,
    "gradient_accumulation_steps": 2,
}


def test_settings_are_the_inner_ones():
    inner = keras.optimizers.SGD(0.1, **SETTINGS)
    optimizer = ClippedOptimizer(inner, clip)
    assert {name: getattr(optimizer, name) for name in SETTINGS} == SETTINGS
    changed = {"weight_decay": 0.2, "ema_momentum": 0.5, "ema_overwrite_frequency": 7, "loss_scale_factor": 2.0}
    for name, value in changed.items():
        setattr(optimizer, name, value)
        assert getattr(inner, name) == value
    assert float(optimizer.scale_loss(3.0)) == 6.0


def test_weights_can_be_carried_from_one_optimizer_to_another():
    for kind in (keras.optimizers.SGD, keras.optimizers.Adam):
        one, other = (ClippedOptimizer(kind(0.1), clip) for _ in range(2))
        variable = keras.Variable([1.0, 1.0])
        for _ in range(3):
            one.apply([keras.ops.array([3.0, 4.0])], [variable])
        other.build([variable])
        other.set_weights(one.variables)
        assert int(other.iterations) == 3
        for a, b in zip(one.variables, other.variables, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


def averaging(clipped):
    settings = {"use_ema": True, "ema_momentum": 0.9}
    if clipped:
        return ClippedOptimizer(keras.optimizers.SGD(0.1, **settings), clip)
    return keras.optimizers.SGD(0.1, global_clipnorm=0.5, **settings)


@pytest.mark.parametrize("swap_on_epoch", [False, True])
@pytest.mark.parametrize("wrapper", ["none", "loss scale", "by variable", "both"])
def test_averaged_weights_inside_keras_own_wrappers(wrapper, swap_on_epoch):
    def wrapped(clipped):
        # Each optimizer has all variables of its own, so that both ways clip by the same norm.
        if wrapper in ("none", "loss scale"):
            optimizer = averaging(clipped)
        else:
            kinds = keras.optimizers.OptimizerMap(averaging(clipped), {".*bias": averaging(clipped)})
            optimizer = keras.optimizers.MultiOptimizer(kinds)
        if wrapper in ("loss scale", "both"):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
        return optimizer

    losses = []
    for clipped in (False, True):
        model = dense()
        model.compile(wrapped(clipped), "mse")
        callbacks = [keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)]
        run = model.fit(
            X, Y, batch_size=8, epochs=2, shuffle=False, validation_data=(X, Y), verbose=0, callbacks=callbacks
        )
        losses.append([run.history["val_loss"], *weights(model)])
    for own, ours in zip(*losses, strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-5, atol=1e-6)


def test_a_model_with_an_optimizer_for_each_kind_of_variable_is_saved_and_loaded(tmp_path):
    def new():
        kinds = {".*bias": ClippedOptimizer(keras.optimizers.Adam(0.05), ByNorm(0.25))}
        default = ClippedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), clip)
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(default, kinds))

    straight = fit(new(), epochs=4)
    model = fit(new(), epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    fit_on = loaded.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert len(fit_on.history["loss"]) == 2
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    assert [int(o.iterations) for o in loaded.optimizer.optimizers] == [16, 16]
    assert_same(loaded, straight)


def test_half_precision_with_a_loss_scale():
    """Under mixed_float16 compile wraps what it is given in a LossScaleOptimizer."""
    runs = []
    for optimizer in (
        keras.optimizers.SGD(0.1, global_clipnorm=0.5, use_ema=True),
        ClippedOptimizer(keras.optimizers.SGD(0.1, use_ema=True), clip),
    ):
        keras.utils.set_random_seed(0)
        policy = keras.mixed_precision.Policy("mixed_float16")
        layers = [keras.layers.Dense(4, activation="tanh", dtype=policy), keras.layers.Dense(1, dtype=policy)]
        model = keras.Sequential([keras.Input((3,)), *layers])
        scaled = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)
        model.compile(scaled, "mse", auto_scale_loss=False)
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()])
        runs.append(model)
    # Products in half precision are rounded to three digits, and may be added in another order.
    for own, ours in zip(*map(weights, runs), strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-3, atol=1e-3)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = dense()
        model.compile(ClippedOptimizer(keras.optimizers.SGD(0.1), clip), "mse")
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert isinstance(model.optimizer.inner_optimizer, ClippedOptimizer)
        model.fit(X, Y, batch_size=8, epochs=1, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_train_step_of_ones_own_scales_the_loss():
    """What Keras' guides to custom training steps do, on each backend."""

    class Model(keras.Sequential):
        def train_step(self, *arguments):
            if BACKEND == "tensorflow":
                import tensorflow as tf

                ((x, y),) = arguments
                with tf.GradientTape() as tape:
                    loss = self.optimizer.scale_loss(self.compute_loss(x, y, self(x, training=True)))
                grads = tape.gradient(loss, self.trainable_variables)
                self.optimizer.apply(grads, self.trainable_variables)
                return {"loss": loss}
            if BACKEND == "torch":
                import torch

                ((x, y),) = arguments
                self.zero_grad()
                loss = self.optimizer.scale_loss(self.compute_loss(x, y, self(x, training=True)))
                loss.backward()
                variables = list(self.trainable_weights)
                with torch.no_grad():
                    self.optimizer.apply([v.value.grad for v in variables], variables)
                return {"loss": loss}
            import jax

            (trainable, fixed, state, metrics), (x, y) = arguments

            def loss_of(trainable):
                predicted, _ = self.stateless_call(trainable, fixed, x, training=True)
                with keras.StatelessScope(state_mapping=list(zip(self.optimizer.variables, state, strict=True))):
                    return self.optimizer.scale_loss(keras.ops.mean(keras.losses.mean_squared_error(y, predicted)))

            loss, grads = jax.value_and_grad(loss_of)(trainable)
            trainable, state = self.optimizer.stateless_apply(state, grads, trainable)
            return {"loss": loss}, (trainable, fixed, state, metrics)

    def run(optimizer, factor=None):
        keras.utils.set_random_seed(0)
        model = Model([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
        return fit(optimizer, model=model, epochs=2)

    plain = fit(keras.optimizers.SGD(0.1, global_clipnorm=0.5), epochs=2)
    assert_same(run(ClippedOptimizer(keras.optimizers.SGD(0.1, loss_scale_factor=32.0), clip)), plain)
    scaled = keras.optimizers.LossScaleOptimizer(ClippedOptimizer(keras.optimizers.SGD(0.1), clip), initial_scale=64.0)
    assert_same(run(scaled), plain)


def test_compiled_by_pytorch():
    """Keras leaves PyTorch uncompiled unless it is told to; on the other backends it is the same as elsewhere."""
    own, ours = own_and_ours(jit_compile=True, epochs=1)
    assert_same(own, ours)


# Thresholds that follow the run ---------------------------------------------------------------------------------------


def following(threshold, read):
    def rule(grads):
        norm = gradclip.global_norm(grads)
        return gradclip.clip_by_global_norm(grads, read(threshold.update, norm), norm=norm).grads

    return rule


def test_a_threshold_object_in_a_step_that_is_not_compiled():
    threshold = gradclip.thresholds.Percentile(50)
    fit(ClippedOptimizer(keras.optimizers.SGD(0.1), following(threshold, lambda f, n: f(n))), run_eagerly=True)
    assert len(threshold.state_dict()["history"]) == 12


if BACKEND != "torch":  # where Keras hands tensors with values to a rule

    def test_a_threshold_object_in_a_compiled_step():
        threshold = gradclip.thresholds.Percentile(50)
        with pytest.raises(
            TypeError, match=r"clip needs the value of an array.*run_eagerly=True.*call back to the host"
        ):
            fit(ClippedOptimizer(keras.optimizers.SGD(0.1), following(threshold, lambda f, n: f(n))))

        def read(update, norm):
            if BACKEND == "tensorflow":
                import tensorflow as tf

                return tf.numpy_function(update, [norm], tf.float64)
            import jax

            return jax.experimental.io_callback(lambda n: np.float32(update(n)), norm, norm)

        fit(ClippedOptimizer(keras.optimizers.SGD(0.1), following(threshold, read)), jit_compile=BACKEND == "jax")
        assert len(threshold.state_dict()["history"]) == 12


# What it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_two_clips_are_refused(kind):
    with pytest.raises(ValueError, match=rf"inner clips already, by {{'{kind}': 1.0}}"):
        ClippedOptimizer(keras.optimizers.SGD(**{kind: 1.0}), clip)
    with pytest.raises(TypeError, match="got a ClippedOptimizer, which hands them on"):
        ClippedOptimizer(ClippedOptimizer(keras.optimizers.SGD(), clip), clip)


def test_a_clip_that_is_set_later_on_is_refused_in_the_next_step():
    optimizer = ClippedOptimizer(keras.optimizers.SGD(), clip)
    optimizer.inner_optimizer.clipvalue = 1.0
    with pytest.raises(ValueError, match=r"inner clips already, by {'clipvalue': 1.0}"):
        step(optimizer, np.float32([1]))


def test_an_inner_optimizer_belongs_to_one():
    inner = keras.optimizers.SGD(1.0)
    first = ClippedOptimizer(inner, clip)
    with pytest.raises(ValueError, match="inner is the inner optimizer of another ClippedOptimizer"):
        ClippedOptimizer(inner, lambda grads: grads)
    np.testing.assert_allclose(step(first, np.float32([3, 4]))[0], [-0.3, -0.4], rtol=1e-6)  # as before


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
