"""The clipping rules as optax transformations, for any JAX pytree: ``import gradclip.optax``.

They differ from optax's own in what they promise, which is gradclip's contract, and in what they remember: the norm
before clipping, which optax throws away. `clip`, `clip_by_block_rms`, `clip_by_global_norm`, `adaptive_grad_clip` and
`per_example_global_norm_clip` have optax's names and arguments, so that one changed import moves a program over; the
others have those of gradclip. Every ``update`` takes any incoming state, None and ``optax.EmptyState()`` too.

On the CPU, XLA takes subnormal numbers for zero (in float32 those below 1.2e-38), whoever calculates with them. So
elements that are subnormal do not count in a norm, and what would be subnormal after it was scaled becomes zero.
Gradients within their threshold keep such elements, for nothing is calculated with them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]

from . import arguments, rules
from .backends import jax as backend

__all__ = [
    "NormState",
    "adaptive_grad_clip",
    "clip",
    "clip_adaptive",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "per_example_global_norm_clip",
]

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


def clip(max_delta: Any) -> optax.GradientTransformation:
    """Move every element into [-max_delta, max_delta]: `clip_by_value` under optax's name.

    Where it differs from ``optax.clip``: a limit that is negative or NaN is refused.

    Parameters
    ----------
    max_delta : float or 0-d array
        The limit ≥ 0.

    Returns
    -------
    optax.GradientTransformation
        Without a state.

    Raises
    ------
    TypeError, ValueError
        Not here: its ``update`` raises as `gradclip.clip_by_value` does.

    References
    ----------
    ``optax.clip``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> rule = clip(1.0)
    >>> clipped, state = rule.update(jnp.array([3.0, -4.0, 0.5]), None)
    >>> print(clipped)
    [ 1.  -1.   0.5]
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = _flatten(grads)
        arguments.value_of(max_delta, backend, "max_delta")  # else a pair would pass for an interval
        return structure.unflatten(rules.clip_by_value(leaves, max_delta)), state

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

    def clip(grads: Any) -> tuple[Any, Any]:
        leaves, structure = _flatten(grads)
        clipped, norms = rules.clip_and_measure_each(leaves, max_norm, ord, axis)
        return structure.unflatten(clipped), structure.unflatten(norms)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, NormState]:
        clipped, norms = clip(grads)
        return clipped, _like(state, norms)

    return optax.GradientTransformation(_zeros_like(lambda grads: clip(grads)[1]), update)


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

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, NormState]:
        leaves, structure = _flatten(grads)
        try:
            clipped = rules.clip_by_global_norm(leaves, max_norm, ord=ord, nonfinite=nonfinite)
        except rules.NonFiniteGradientError:
            paths = jax.tree_util.tree_leaves_with_path(grads)
            bad = [f"grads{jax.tree_util.keystr(path)}" for path, g in paths if not jnp.isfinite(g).all()]
            raise rules.NonFiniteGradientError(f"not finite: {', '.join(bad)}; nothing has been clipped") from None
        return structure.unflatten(clipped.grads), _like(state, clipped.norm)

    return optax.GradientTransformation(_zeros_like(norm), update)


def clip_by_block_rms(threshold: Any) -> optax.GradientTransformation:
    """Scale every array by itself, so that the root mean square of its elements is at most ``threshold``.

    Where it differs from ``optax.clip_by_block_rms``: a threshold is checked, 0 gives zeros, and finite arrays whose
    squares overflow are clipped, not zeroed.

    Parameters
    ----------
    threshold : float or 0-d array
        The largest root mean square ≥ 0, in the unit of the gradients.

    Returns
    -------
    optax.GradientTransformation
        Without a state.

    Raises
    ------
    TypeError, ValueError
        From ``update``, as for `gradclip.clip_by_block_rms`.

    References
    ----------
    ``optax.clip_by_block_rms``; Shazeer and Stern, *Adafactor*, ICML 2018, section 6.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> rule = clip_by_block_rms(1.0)
    >>> clipped, state = rule.update(jnp.array([2.0, 2.0, -2.0, 2.0]), None)
    >>> print(clipped)
    [ 1.  1. -1.  1.]
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = _flatten(grads)
        return structure.unflatten(rules.clip_by_block_rms(leaves, threshold)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def per_example_global_norm_clip(grads: Any, l2_norm_clip: Any) -> tuple[Any, jax.Array]:
    """Clip the gradient of each example by its own global norm, and add up what is left: the clipping of DP-SGD.

    The noise that makes the sum private is left to a library for it. Where it differs from
    ``optax.per_example_global_norm_clip``: a threshold is checked; an example whose gradient is not finite makes the
    sum NaN, where optax lets it through; examples whose squares overflow are clipped, not zeroed.

    Parameters
    ----------
    grads : pytree of arrays
        Of each parameter the gradients of all examples, shape (examples, …), as ``jax.vmap(jax.grad(loss), (None, 0))``
        gives them.
    l2_norm_clip : float or 0-d array
        The largest norm of an example's gradient.

    Returns
    -------
    tuple
        The sum of the clipped gradients, a pytree of arrays without the first axis, and how many were clipped.

    Raises
    ------
    TypeError, ValueError
        As for `gradclip.clip_per_example`.

    References
    ----------
    ``optax.per_example_global_norm_clip``; Abadi et al., *Deep learning with differential privacy*, CCS 2016,
    algorithm 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> total, clipped = per_example_global_norm_clip([jnp.array([[6.0, 8.0], [0.0, 1.0]])], 5.0)
    >>> print(total[0], clipped)
    [3. 5.] 1
    """
    leaves, structure = _flatten(grads)
    clipped, norms = rules.clip_per_example(leaves, l2_norm_clip)
    sums = [None if g is None else g.sum(0) for g in clipped]
    return structure.unflatten(sums), jnp.sum(norms > jnp.asarray(l2_norm_clip, norms.dtype))


def adaptive_grad_clip(
    clipping: Any, eps: Any = 1e-3, axis: int | tuple[int, ...] | None = None
) -> optax.GradientTransformation:
    """Scale each unit's gradient as `clip_adaptive` does, with the units of optax.

    Where it differs from ``optax.adaptive_grad_clip``: its factors are checked, norms neither overflow nor underflow,
    and a unit within its limit stays as it is, bit for bit.

    Parameters
    ----------
    clipping, eps : float or 0-d array
        The factor r ≥ 0, and the least norm that weights are taken to have.
    axis : int or tuple of int, optional
        The axes that the norm of a unit runs over. By default optax's: all, where at most one axis is longer than 1;
        the first one of arrays with two or three axes; all but the last of those with four or five.

    Returns
    -------
    optax.GradientTransformation
        Without a state. Its ``update`` raises as that of `clip_adaptive` does, and ValueError for arrays with more than
        five axes.

    Raises
    ------
    TypeError
        ``axis`` is a JAX array, as in ``optax.inject_hyperparams`` without ``static_args``.

    References
    ----------
    ``optax.adaptive_grad_clip``; Brock, De, Smith and Simonyan, ICML 2021, as for `clip_adaptive`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> params = jnp.array([[3.0, 6.0], [4.0, 8.0]])  # two units, of norms 5 and 10
    >>> rule = adaptive_grad_clip(0.1)
    >>> clipped, state = rule.update(jnp.array([[0.3, 3.0], [0.4, 4.0]]), None, params)
    >>> print(clipped)
    [[0.3 0.6]
     [0.4 0.8]]
    """
    _check_static(axis=axis)

    def units(shape: tuple[int, ...]) -> Any:
        if axis is not None:
            return axis
        if sum(n != 1 for n in shape) <= 1:
            return tuple(range(len(shape)))
        if len(shape) > 5:
            raise ValueError(f"an array of shape {shape} has more than five axes; pass axis")
        return (0,) if len(shape) < 4 else tuple(range(len(shape) - 1))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, weights, structure = _flatten_both("adaptive_grad_clip", grads, params)
        groups: dict[Any, list[int]] = {}
        for i, g in enumerate(leaves):
            if g is not None:
                groups.setdefault(units(g.shape) if g.ndim > 1 else None, []).append(i)
        for axes, places in groups.items():
            grouped, grouped_weights = ([tree[i] for i in places] for tree in (leaves, weights))
            clipped = rules.clip_adaptive(grouped, grouped_weights, clipping, eps=eps, axis=axes)
            for i, g in zip(places, clipped, strict=True):
                leaves[i] = g
        return structure.unflatten(leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clip_adaptive(
    clip_factor: Any = 0.01,
    *,
    eps: Any = 1e-3,
    unit_axis: int | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> optax.GradientTransformation:
    """Scale each unit's gradient so that its norm is at most ``clip_factor`` times the norm of the unit's weights.

    Its ``update`` needs the parameters. `adaptive_grad_clip` counts units as optax does. The two agree on matrices and
    convolution kernels, and differ elsewhere: with three axes optax counts units along the last two, here they are
    counted along the last; and an array with one axis longer than 1, such as (1, N), is one unit in optax, and N units
    of one element here.

    Parameters
    ----------
    clip_factor, eps : float or 0-d array
        The factor r ≥ 0, and the least norm that weights are taken to have.
    unit_axis : int, optional
        The axis that counts the units: the last by default. Arrays with fewer than two axes are one unit.
    axis : int or tuple of int, optional
        Instead of ``unit_axis``, the axes that the norm of a unit runs over.

    Returns
    -------
    optax.GradientTransformation
        Without a state. Its ``update`` raises as `gradclip.clip_adaptive` does, and ValueError without parameters.

    Raises
    ------
    TypeError
        ``unit_axis`` or ``axis`` is a JAX array, as in ``optax.inject_hyperparams`` without ``static_args``.

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
    _check_static(unit_axis=unit_axis, axis=axis)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, weights, structure = _flatten_both("clip_adaptive", grads, params)
        clipped = rules.clip_adaptive(leaves, weights, clip_factor, eps=eps, unit_axis=unit_axis, axis=axis)
        return structure.unflatten(clipped), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of any pytree as JAX arrays, None among them, and its structure."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: x is None)
    return [None if x is None else jnp.asarray(x) for x in leaves], structure


def _flatten_both(name: str, grads: Any, params: Any) -> tuple[list[Any], list[Any], Any]:
    """The leaves of the gradients, those of the parameters beside them, and the structure."""
    if params is None:
        raise ValueError(f"{name} compares gradients with parameters: call update(grads, state, params)")
    leaves, structure = _flatten(grads)
    return leaves, [None if w is None else jnp.asarray(w) for w in structure.flatten_up_to(params)], structure


def _zeros_like(norm: Any) -> Any:
    """An ``init`` that makes a state of zeros, of the shapes and dtypes that the norms of the gradients will have."""

    def init(params: Any) -> NormState:
        def zeros(n: Any) -> jax.Array:
            return jnp.zeros(n.shape, n.dtype, device=n.sharding)

        return NormState(jax.tree.map(zeros, jax.eval_shape(norm, params)))

    return init


def _like(state: Any, norm: Any) -> NormState:
    """The new norm in the structure, dtypes and shardings of the old, so that a state can be carried through a loop.

    A state of another kind (None, an ``optax.EmptyState``, one that was made for other parameters) is replaced.
    """

    def like(new: Any, old: Any) -> Any:
        if new is None or old is None:
            return new if old is None else jnp.zeros_like(old)
        new, sharding = jnp.asarray(new, old.dtype), jax.typeof(old).sharding
        if sharding.mesh.empty or jax.typeof(new).sharding == sharding:
            return new
        return jax.sharding.reshard(new, sharding)  # type: ignore[no-untyped-call]

    def fits(new: Any, old: Any) -> bool:
        return new is None or old is None or jnp.shape(new) == jnp.shape(old)

    def with_none(function: Any) -> Any:
        return jax.tree.map(function, norm, state.norm, is_leaf=lambda x: x is None)

    if not isinstance(state, NormState):
        return NormState(norm)
    try:
        fitting = all(jax.tree.leaves(with_none(fits)))
    except ValueError:  # the two differ in their structure
        fitting = False
    return NormState(with_none(like) if fitting else norm)


def _check_static(**arguments: Any) -> None:
    for name, value in arguments.items():
        if isinstance(value, jax.Array):
            raise TypeError(
                f"{name} must be known when the transformation is made, got a JAX array; "
                f'in optax.inject_hyperparams, pass static_args="{name}"'
            )
