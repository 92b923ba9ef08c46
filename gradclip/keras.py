"""Any clipping rule inside any Keras 3 optimizer, on each of Keras' backends: ``import gradclip.keras``."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras  # type: ignore[import-untyped]

__all__ = ["ClippedOptimizer"]

OWN_CLIPS = ("clipnorm", "global_clipnorm", "clipvalue")


def _of_the_inner_optimizer(name: str, what: str) -> Any:
    """An attribute that is the inner optimizer's: it is read there, and what is assigned to it is assigned there."""

    def assign(optimizer: Any, value: Any) -> None:
        if "inner_optimizer" in optimizer.__dict__:  # Optimizer.__init__ assigns its defaults, before there is one
            setattr(optimizer.inner_optimizer, name, value)

    return property(lambda optimizer: getattr(optimizer.inner_optimizer, name), assign, doc=what)


@keras.saving.register_keras_serializable("gradclip")
class ClippedOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """A Keras optimizer whose gradients go through ``clip`` first.

    ``clip`` is called where Keras would clip by ``global_clipnorm``: after the loss scale has been divided out, once
    per step of accumulated gradients, before weight decay, and without the gradients that are None. All else, from the
    learning rate to the moving average of the weights, is the inner optimizer's, which works as it would by itself.

    Parameters
    ----------
    inner : keras.optimizers.Optimizer
        The optimizer. It is taken over: from then on, its own steps are clipped as well.
    clip : callable
        Maps a list of gradients to a list of as many, arrays of Keras' backend of any shapes and floating dtypes:
        tf.Tensor (or tf.IndexedSlices, from an Embedding), jax.Array or torch.Tensor. It runs inside ``tf.function``
        or ``jax.jit``. To save and load the model, make it a function, or an object with ``get_config``, that is
        registered with ``keras.saving.register_keras_serializable``.
    name : str, optional
        The optimizer's name.

    Raises
    ------
    TypeError
        ``inner`` is no Keras optimizer or hands its gradients on to others; ``clip`` cannot be called, or, in the first
        step, returned something else than a list of as many gradients.
    ValueError
        ``inner`` clips already, by ``clipnorm``, ``global_clipnorm`` or ``clipvalue``, or is the inner optimizer of
        another ClippedOptimizer.

    Notes
    -----
    Compiled steps: ``clip`` sees symbols then, which have no values yet. An object of `gradclip.thresholds` reads the
    value of the norm, so it needs ``model.compile(..., run_eagerly=True)``, or a call back to the host from the
    compiled step: ``tf.numpy_function(threshold.update, [norm], tf.float64)`` on TensorFlow, with
    ``jit_compile=False``; ``jax.experimental.io_callback(threshold.update, norm, norm)`` on JAX.

    Variables: where ``clip`` hands a ``keras.Variable`` to gradclip, as a threshold or as weights, hand in its
    ``.value``, which is an array of the backend.

    Mixed precision: a loss scale belongs outside, ``LossScaleOptimizer(ClippedOptimizer(inner, clip))``, for the norm
    is then that of the unscaled gradients. ``model.compile`` wraps in this order by itself.

    Many devices: in a ``tf.distribute`` strategy the replicas' gradients are summed before ``clip`` sees them. Keras'
    own clipping comes before the sum, and there limits something else.

    References
    ----------
    ``keras.optimizers.Optimizer``, Keras 3.

    Examples
    --------
    >>> import gradclip, keras
    >>> @keras.saving.register_keras_serializable("docs")
    ... def clip(grads):
    ...     return gradclip.clip_by_global_norm(grads, 1.0).grads
    >>> optimizer = ClippedOptimizer(keras.optimizers.SGD(learning_rate=1.0), clip)
    >>> weights = keras.Variable([0.0, 0.0])
    >>> optimizer.apply([keras.ops.array([3.0, 4.0])], [weights])
    >>> print(keras.ops.convert_to_numpy(-weights))
    [0.6 0.8]
    """

    def __init__(
        self, inner: keras.optimizers.Optimizer, clip: Callable[[list[Any]], list[Any]], name: str | None = None
    ) -> None:
        if not isinstance(inner, keras.optimizers.Optimizer):
            raise TypeError(f"inner must be a Keras optimizer, got {inner!r} of type {type(inner).__name__}")
        if type(inner).apply is not keras.optimizers.Optimizer.apply:
            raise TypeError(
                f"inner must apply the gradients itself, got a {type(inner).__name__}, which hands them on to "
                "optimizers of its own: put ClippedOptimizer around those"
            )
        if not callable(clip):
            raise TypeError(f"clip must map a list of gradients to a list of gradients, got {clip!r}")
        _check_has_no_clip(inner)
        if "_clip_gradients" in inner.__dict__:
            raise ValueError(
                "inner is the inner optimizer of another ClippedOptimizer, whose clip would be lost: make a new "
                "optimizer for each"
            )
        super().__init__(0.0, name=name)
        self.inner_optimizer = inner  # Keras' callbacks look for this name
        self.clip = clip
        self._iterations = inner._iterations  # apply_gradients returns it
        inner._clip_gradients = self._clip_gradients  # what every optimizer calls at the right moment
        inner._all_reduce_sum_gradients = _unchanged  # for that comes before clipping here

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        _check_has_no_clip(self.inner_optimizer)  # for these attributes can be set later on
        if keras.backend.backend() == "tensorflow":
            kind = type(self.inner_optimizer)
            pairs = kind._all_reduce_sum_gradients(self.inner_optimizer, [(grad, None) for grad in grads])
            grads = [grad for grad, _ in pairs]
        with _explained():
            clipped = self.clip(grads)
        if not isinstance(clipped, list) or len(clipped) != len(grads):
            got = f"a list of {len(clipped)}" if isinstance(clipped, list) else f"a {type(clipped).__name__}"
            raise TypeError(
                f"clip must return a list of {len(grads)} gradients, got {got} "
                "(of what gradclip.clip_by_global_norm returns, take .grads)"
            )
        return clipped

    def build(self, variables: list[Any]) -> None:
        """Create the inner optimizer's variables for these of the model."""
        self.inner_optimizer.build(variables)
        self.built = True

    def apply(self, grads: list[Any], trainable_variables: Iterable[Any] | None = None) -> None:
        """Take one step of the inner optimizer, along the clipped gradients."""
        self.inner_optimizer.apply(grads, trainable_variables)
        self.built = True

    def stateless_apply(self, *args: Any) -> Any:
        """Take the step of `apply` on values handed in and returned, as JAX needs it."""
        return self.inner_optimizer.stateless_apply(*args)

    # The rest is the inner optimizer's. Keras' callbacks and its other wrappers read the private names.

    learning_rate = _of_the_inner_optimizer("learning_rate", "The inner optimizer's learning rate.")
    weight_decay = _of_the_inner_optimizer("weight_decay", "The inner optimizer's weight decay.")
    clipnorm = _of_the_inner_optimizer("clipnorm", "None: the inner optimizer has no clip of its own.")
    global_clipnorm = _of_the_inner_optimizer("global_clipnorm", "None: the inner optimizer has no clip of its own.")
    clipvalue = _of_the_inner_optimizer("clipvalue", "None: the inner optimizer has no clip of its own.")
    use_ema = _of_the_inner_optimizer("use_ema", "Whether the inner optimizer keeps a moving average of the weights.")
    ema_momentum = _of_the_inner_optimizer("ema_momentum", "The momentum of that average.")
    ema_overwrite_frequency = _of_the_inner_optimizer("ema_overwrite_frequency", "After how many steps it is taken.")
    loss_scale_factor = _of_the_inner_optimizer("loss_scale_factor", "What the inner optimizer divides gradients by.")
    gradient_accumulation_steps = _of_the_inner_optimizer("gradient_accumulation_steps", "How many steps it sums up.")
    _trainable_variables = _of_the_inner_optimizer("_trainable_variables", "The model's variables.")
    _trainable_variables_indices = _of_the_inner_optimizer("_trainable_variables_indices", "Their positions.")
    _model_variables_moving_average = _of_the_inner_optimizer("_model_variables_moving_average", "Their averages.")

    @property
    def variables(self) -> Any:
        """The inner optimizer's variables."""
        return self.inner_optimizer.variables

    @property
    def iterations(self) -> Any:
        """The number of steps taken."""
        return self.inner_optimizer.iterations

    def set_weights(self, weights: list[Any]) -> None:
        """Give the inner optimizer's variables these values."""
        self.inner_optimizer.set_weights(weights)

    def scale_loss(self, loss: Any) -> Any:
        """Multiply the loss by the factor that the inner optimizer divides the gradients by."""
        return self.inner_optimizer.scale_loss(loss)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        """Exclude variables from the inner optimizer's weight decay."""
        self.inner_optimizer.exclude_from_weight_decay(*args, **kwargs)

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Set the weights to their moving average, where the inner optimizer keeps one."""
        self.inner_optimizer.finalize_variable_values(var_list)

    # Keras saves the inner optimizer, which is an attribute. The same variables need not be saved twice.

    def save_own_variables(self, store: Any) -> None:
        """Save nothing: the inner optimizer saves its variables."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing: the inner optimizer loads its variables."""

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor in Keras' serialised form."""
        inner, clip = (keras.saving.serialize_keras_object(x) for x in (self.inner_optimizer, self.clip))
        return {"name": self.name, "inner": inner, "clip": clip}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "ClippedOptimizer":
        """Build the optimizer that `get_config` described."""
        inner, clip = (keras.saving.deserialize_keras_object(config[x], custom_objects) for x in ("inner", "clip"))
        return cls(inner, clip, config["name"])


def _check_has_no_clip(inner: Any) -> None:
    if own := {kind: getattr(inner, kind) for kind in OWN_CLIPS if getattr(inner, kind) is not None}:
        raise ValueError(f"inner clips already, by {own}: leave that out, or leave ClippedOptimizer out")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Add what to do to the errors of a rule that asks a compiled step for a value."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if any(word in f"{type(error).__name__} {error}" for word in ("SymbolicTensor", "Concretization")):
            raise TypeError(
                "clip needs the value of an array, and a compiled step has none yet: compile the model with "
                "run_eagerly=True, or let clip call back to the host (Notes of gradclip.keras.ClippedOptimizer)"
            ) from error
        raise


def _unchanged(grads_and_vars: Any) -> Any:
    return grads_and_vars
