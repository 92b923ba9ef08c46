"""The clipping rules as optax transformations, for any JAX pytree: ``import gradclip.optax``.

They differ from optax's own in what they promise, which is gradclip's contract, and in what they remember: the norm
before clipping, which optax throws away.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]

from . import rules
from .backends import jax as backend

__all__ = ["NormState", "clip_adaptive", "clip_by_global_norm", "clip_by_norm", "clip_by_value"]

# optax.inject_hyperparams makes a traced array of every int and float, and the order of a norm must be known to trace.
TWO: Any = np.int64(2)


class NormState(NamedTuple):
    """What the transformations by norm remember: the norm before the latest clipping, 0 at first."""

    norm: Any


def clip_by_value(limit: Any) -> optax.GradientTransformation:
    """Move every element into an interval.

    Parameters
    ----------
    limit : float, 0-d array, or a pair of them
        The interval [-limit, limit], or [low, high] for a pair.

    Returns
    -------
    optax.GradientTransformation
        Without a state. NaN stays NaN.

    Raises
    ------
    TypeError, ValueError
        Not here: its ``update`` raises as `gradclip.clip_by_value` does.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> rule = clip_by_value(1.0)
    >>> grads = {"w": jnp.array([3.0, -4.0, 0.5])}
    >>> clipped, state = rule.update(grads, rule.init(grads))
    >>> print(clipped["w"])
    [ 1.  -1.   0.5]
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = _flatten(grads)
        return structure.unflatten(rules.clip_by_value(leaves, limit)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clip_by_norm(
    max_norm: Any, *, ord: float = TWO, axis: int | tuple[int, ...] | None = None
) -> optax.GradientTransformation:
    """Scale every array by itself, so that its own norm is at most ``max_norm``.

    Parameters
    ----------
    max_norm : float or 0-d array
        The threshold c ≥ 0, in the unit of the gradients. It may be traced; where it is then negative or NaN, the
        gradients become NaN.
    ord : float, default 2
        The order p of the norm (Σ|x|ᵖ)¹ᐟᵖ: any p > 0, or ``inf``.
    axis : int or tuple of int, optional
        Clip slices along these axes, each by its own norm, instead of whole arrays.

    Returns
    -------
    optax.GradientTransformation
        Its state is a `NormState`, whose ``norm`` is a tree like the gradients: of each array its norm, as a 0-d array,
        or the norms of its slices, with the axes kept as axes of length 1.

    Raises
    ------
    TypeError
        ``ord`` or ``axis`` is a JAX array, as in ``optax.inject_hyperparams`` without ``static_args``. The ``update``
        raises as `gradclip.clip_by_norm` does.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> rule = clip_by_norm(1.0)
    >>> grads = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
    >>> clipped, state = rule.update(grads, rule.init(grads))
    >>> print(clipped["w"], state.norm["w"], clipped["b"], state.norm["b"])
    [0.6 0.8] 5.0 [0.5] 0.5
    """
    _check_static(ord=ord, axis=axis)

    def norms(grads: Any) -> Any:
        leaves, structure = _flatten(grads)
        return structure.unflatten([None if g is None else norm(g) for g in leaves])

    def norm(g: jax.Array) -> Any:
        return rules.global_norm(g, ord=ord) if axis is None else backend.slice_norms(g, float(ord), axis).value

    def update(grads: Any, state: NormState, params: Any = None) -> tuple[Any, NormState]:
        leaves, structure = _flatten(grads)
        clipped = rules.clip_by_norm(leaves, max_norm, ord=ord, axis=axis)
        return structure.unflatten(clipped), _like(state, norms(grads))

    return optax.GradientTransformation(_zeros_like(norms), update)


def clip_by_global_norm(max_norm: Any, *, ord: float = TWO, nonfinite: str = "nan") -> optax.GradientTransformation:
    """Scale all gradients by one factor, so that their global norm is at most ``max_norm``.

    Where it differs from ``optax.clip_by_global_norm``: the state keeps the norm; a threshold is checked; finite
    gradients whose squares overflow are clipped, not zeroed; gradients at the threshold, and all-zero gradients at a
    threshold of 0, stay as they are; gradients that are not finite follow a policy.

    Parameters
    ----------
    max_norm, ord
        As for `clip_by_norm`.
    nonfinite : {"nan", "zero", "keep", "raise"}
        What becomes of the gradients where one is not finite: all NaN, all 0, no change, or an error. Under ``jax.jit``
        an error cannot be had: ValueError.

    Returns
    -------
    optax.GradientTransformation
        Its state is a `NormState`, whose ``norm`` is a 0-d array: float64 if a parameter is float64 or complex128, else
        float32.

    Raises
    ------
    TypeError
        As for `clip_by_norm`. The ``update`` raises as `gradclip.clip_by_global_norm` does.

    References
    ----------
    Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013, Algorithm 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optax
    >>> optimizer = optax.chain(clip_by_global_norm(1.0), optax.sgd(0.5))
    >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
    >>> print(updates["w"], updates["b"], optax.tree.get(state, "norm"))
    [-0.3 -0. ] [-0.4] 5.0
    """
    _check_static(ord=ord)

    def norm(grads: Any) -> Any:
        return rules.global_norm(_flatten(grads)[0], ord=ord)

    def update(grads: Any, state: NormState, params: Any = None) -> tuple[Any, NormState]:
        leaves, structure = _flatten(grads)
        try:
            clipped = rules.clip_by_global_norm(leaves, max_norm, ord=ord, nonfinite=nonfinite)
        except rules.NonFiniteGradientError:
            paths = jax.tree_util.tree_leaves_with_path(grads)
            bad = [f"grads{jax.tree_util.keystr(path)}" for path, g in paths if not jnp.isfinite(g).all()]
            raise rules.NonFiniteGradientError(f"not finite: {', '.join(bad)}; nothing has been clipped") from None
        return structure.unflatten(clipped.grads), _like(state, clipped.norm)

    return optax.GradientTransformation(_zeros_like(norm), update)


def clip_adaptive(
    clip_factor: Any = 0.01, *, eps: Any = 1e-3, unit_axis: int | None = None
) -> optax.GradientTransformation:
    """Scale each unit's gradient so that its norm is at most ``clip_factor`` times the norm of the unit's weights.

    Its ``update`` needs the parameters. ``optax.adaptive_grad_clip`` has the same units in matrices and convolution
    kernels; in arrays with three axes it counts them along the last two, here they are counted along the last.

    Parameters
    ----------
    clip_factor, eps : float or 0-d array
        The factor r ≥ 0, and the least norm that weights are taken to have.
    unit_axis : int, optional
        The axis that counts the units: the last by default. Arrays with fewer than two axes are one unit.

    Returns
    -------
    optax.GradientTransformation
        Without a state. Its ``update`` raises as `gradclip.clip_adaptive` does, and ValueError without parameters.

    Raises
    ------
    TypeError
        ``unit_axis`` is a JAX array, as in ``optax.inject_hyperparams`` without ``static_args``.

    References
    ----------
    Brock, De, Smith and Simonyan, *High-performance large-scale image recognition without normalization*, ICML 2021,
    equation 3.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> params = jnp.array([[3.0, 6.0], [4.0, 8.0]])  # two units, of norms 5 and 10
    >>> rule = clip_adaptive(0.1)
    >>> clipped, state = rule.update(jnp.array([[0.3, 3.0], [0.4, 4.0]]), rule.init(params), params)
    >>> print(clipped)
    [[0.3 0.6]
     [0.4 0.8]]
    """
    _check_static(unit_axis=unit_axis)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("clip_adaptive compares gradients with parameters: call update(grads, state, params)")
        leaves, structure = _flatten(grads)
        weights = [None if w is None else jnp.asarray(w) for w in structure.flatten_up_to(params)]
        return structure.unflatten(
            rules.clip_adaptive(leaves, weights, clip_factor, eps=eps, unit_axis=unit_axis)
        ), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of any pytree as JAX arrays, None among them, and its structure."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: x is None)
    return [None if x is None else jnp.asarray(x) for x in leaves], structure


def _zeros_like(norm: Any) -> Any:
    """An ``init`` that makes a state of zeros, of the shapes and dtypes that the norms of the gradients will have."""

    def init(params: Any) -> NormState:
        return NormState(jax.tree.map(lambda n: jnp.zeros(n.shape, n.dtype), jax.eval_shape(norm, params)))

    return init


def _like(state: NormState, norm: Any) -> NormState:
    """The new norm in the structure and dtypes of the old, so that a state can be carried through a loop."""

    def like(new: Any, old: Any) -> Any:
        return old if old is None else jnp.zeros_like(old) if new is None else jnp.asarray(new, old.dtype)

    return NormState(jax.tree.map(like, norm, state.norm, is_leaf=lambda x: x is None))


def _check_static(**arguments: Any) -> None:
    for name, value in arguments.items():
        if isinstance(value, jax.Array):
            raise TypeError(
                f"{name} must be known when the transformation is made, got a JAX array; "
                f'in optax.inject_hyperparams, pass static_args="{name}"'
            )
