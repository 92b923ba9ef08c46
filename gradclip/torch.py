"""Drop-ins for the clipping functions of ``torch.nn.utils``: one changed import moves a training loop over.

They take the same arguments and differ from PyTorch's in the following.

- **No epsilon.** Gradients are multiplied by c/n, PyTorch multiplies by c/(n + 1e-6) (by 0.5 where c = n = 1e-6).
- **Nothing is written where n ≤ c.** PyTorch multiplies by 1.
- **Finite gradients stay right where their squares overflow.** PyTorch makes zeros of [1e20, 2e20].
- **Accurate norm.** Of half-precision gradients it is float32 (PyTorch's is rounded to their dtype), and on the CPU its
  error does not grow with the number of elements.
- **Thresholds are checked.** A negative one, which flips the update's sign in PyTorch, and NaN: ValueError; a bool or a
  string: TypeError. A 0-d tensor on a GPU is not waited for, as PyTorch's ``float(max_norm)`` does. ``inf``
  measures and changes nothing, also where a gradient is not finite.
- **Where one gradient is not finite** all become NaN: such a norm has no direction to keep. PyTorch multiplies by
  c/inf = 0 where the norm is infinite, which makes NaN of the infinite elements and zeros of the others.
- **Gradients are counted and scaled once**, though their parameter is listed twice (tied weights) or shares them with
  another. PyTorch counts and scales them twice.
- **norm_type** must be above 0. PyTorch takes 0, and counts tensors with it, not elements.
- **foreach** is accepted and has no effect, since there is one implementation, and it is fast for many small tensors.
- **error_if_nonfinite** asks whether a gradient is finite, PyTorch's whether the norm is. Nothing has been written when
  it raises, and the error names the gradients.
- **A warning of an empty generator** comes from each function here that takes parameters, in PyTorch from
  ``clip_grad_norm_`` alone.
- **Sharded gradients** (DTensors, of FSDP2 or tensor parallel training) need one exchange for each device mesh, and may
  lie on several meshes in one call, beside tensors that are not sharded: expert parallel models clip in one call.
  PyTorch raises for more than one mesh, and for a mixture. Where all gradients are DTensors of one mesh, the norm is a
  DTensor as in PyTorch, with ``.placements`` and ``.full_tensor()``, but each rank holds its value already, and
  ``.item()`` and ``.to_local()`` give the norm of the whole gradient. In other cases it is a plain tensor.

Under ``torch.compile`` all functions are traced, with ``fullgraph=True`` too. ``error_if_nonfinite=True`` looks at a
value, breaks the graph, and is refused with ``fullgraph=True``: that is so in PyTorch as well.

`clip_grad_adaptive_` and `fold_into` have no counterpart there: adaptive gradient clipping straight from parameters,
and a fused optimizer that clips in its own step.
"""

import inspect
import math
import types
import warnings
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from . import arguments, rules
from .backends import torch as backend
from .backends.torch_sharded import as_norm_of, whole

__all__ = [
    "NonFiniteGradientError",
    "clip_grad_adaptive_",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "fold_into",
    "get_total_norm",
]

Tensors = torch.Tensor | Iterable[torch.Tensor]


class NonFiniteGradientError(rules.NonFiniteGradientError, RuntimeError):
    """Raised with ``error_if_nonfinite=True`` where a gradient holds NaN or infinity.

    It is a RuntimeError as well, which is what PyTorch raises, so that code that catches that keeps working.
    """


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Scale the gradients of parameters in place, by one factor, so that their global norm is at most ``max_norm``.

    With n the norm and c = ``max_norm``, gradients stay as they are where n ≤ c and become (c/n)·g where n > c. The
    module's docstring lists how this differs from PyTorch's function.

    Parameters
    ----------
    parameters : tensor or iterable of tensors
        Whose ``.grad`` is clipped. Those without a gradient are passed over.
    max_norm : float or 0-d tensor
        The threshold c ≥ 0, in the unit of the gradients.
    norm_type : float, default 2.0
        The order p of the norm (Σ|x|ᵖ)¹ᐟᵖ: any p > 0, ``inf`` or ``"inf"``.
    error_if_nonfinite : bool, default False
        Whether to raise, on a GPU after waiting for it, where a gradient is not finite; else all become NaN. Finite
        gradients whose norm overflows float32 do not count, and keep their direction. In ``torch.compile`` it breaks
        the graph.
    foreach : bool, optional
        Has no effect.

    Returns
    -------
    0-d tensor
        The norm before clipping: float64 if a gradient is float64 or complex128, else float32. 0.0 without gradients.
        Where all gradients are DTensors of one mesh, it is a DTensor that every rank holds.

    Raises
    ------
    TypeError
        ``max_norm`` is not a number.
    ValueError
        ``max_norm`` is negative or NaN, or ``norm_type`` is not above 0.
    NonFiniteGradientError
        With ``error_if_nonfinite``. It is a RuntimeError, begins as PyTorch's does, names the parameters by position,
        and nothing has been written.

    Warns
    -----
    UserWarning
        ``parameters`` is an exhausted generator, as ``model.parameters()`` is after its first use.

    References
    ----------
    ``torch.nn.utils.clip_grad_norm_``, PyTorch 2.

    Examples
    --------
    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> w.grad = torch.tensor([3.0, 4.0])
    >>> print(clip_grad_norm_([w], max_norm=1.0), w.grad)
    tensor(5.) tensor([0.6000, 0.8000])
    """
    grads, ord = _grads(parameters), _order(norm_type)
    if error_if_nonfinite:
        # A value decides, which no compiler can trace. What it leaves out of its graph runs as it does without one.
        clip = torch.compiler.disable(_clip_or_raise) if torch.compiler.is_compiling() else _clip_or_raise
        norm = clip(grads, max_norm, ord)
    else:
        norm = rules.clip_by_global_norm_(grads, max_norm, ord=ord)
    placed: torch.Tensor = as_norm_of(grads, norm)
    return placed


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Move every element of the gradients of parameters into [-clip_value, clip_value], in place.

    NaN stays NaN and ±inf becomes ±clip_value, as in PyTorch. A negative ``clip_value``, with which PyTorch sets every
    element to it, is refused.

    Parameters
    ----------
    parameters : tensor or iterable of tensors
        As for `clip_grad_norm_`; their gradients are real.
    clip_value : float or 0-d tensor
        The limit ≥ 0, in the unit of the gradients.
    foreach : bool, optional
        Has no effect.

    Raises
    ------
    TypeError
        ``clip_value`` is not a number, or a gradient is complex.
    ValueError
        ``clip_value`` is negative or NaN.

    Warns
    -----
    UserWarning
        As for `clip_grad_norm_`.

    References
    ----------
    ``torch.nn.utils.clip_grad_value_``, PyTorch 2.

    Examples
    --------
    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(3))
    >>> w.grad = torch.tensor([3.0, -4.0, 0.5])
    >>> clip_grad_value_(w, clip_value=1.0)
    >>> print(w.grad)
    tensor([ 1.0000, -1.0000,  0.5000])
    """
    grads = _grads(parameters)
    limit = arguments.nonnegative(clip_value, backend, "clip_value", "every element would become it")
    rules.clip_by_value_(grads, limit)


@torch.no_grad()
def get_total_norm(
    tensors: Tensors, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> torch.Tensor:
    """The norm of all tensors joined into one vector.

    A tensor listed twice counts twice here, as in PyTorch: only `clip_grad_norm_` knows that it is one gradient.

    Parameters
    ----------
    tensors : tensor or iterable of tensors
        The gradients themselves, not their parameters; of any floating-point or complex dtype, shape and device.
    norm_type : float, default 2.0
        The order, as for `clip_grad_norm_`.
    error_if_nonfinite : bool, default False
        Whether to raise where a tensor is not finite, as for `clip_grad_norm_`.
    foreach : bool, optional
        Has no effect.

    Returns
    -------
    0-d tensor
        As for `clip_grad_norm_`, without a derivative.

    Raises
    ------
    ValueError
        ``norm_type`` is not above 0.
    NonFiniteGradientError
        With ``error_if_nonfinite``. It is a RuntimeError, begins as PyTorch's does, and names the tensors by position.

    References
    ----------
    ``torch.nn.utils.get_total_norm``, PyTorch 2.

    Examples
    --------
    >>> import torch
    >>> print(get_total_norm([torch.tensor([3.0, 0.0]), torch.tensor(4.0)]))
    tensor(5.)
    """
    tensors = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
    ord = _order(norm_type)
    norm: torch.Tensor = rules.global_norm(tensors or [torch.zeros(0)], ord=ord)
    if error_if_nonfinite and not norm.isfinite():
        values = [backend.sparse_values(backend.coalesce(t)) if backend.is_sparse(t) else t for t in tensors]
        bad = [f"tensors[{i}]" for i, t in enumerate(values) if not backend.all_finite(t)]
        if bad:  # else all tensors are finite, and their norm does not fit float32
            raise NonFiniteGradientError(f"{_nonfinite(ord)}: not finite: {', '.join(bad)}")
    placed: torch.Tensor = as_norm_of(tensors, norm)
    return placed


def clip_grads_with_norm_(
    parameters: Tensors, max_norm: float, total_norm: torch.Tensor, foreach: bool | None = None
) -> None:
    """`clip_grad_norm_` with a norm that is known already: that of a pipeline's stages joined, say.

    Parameters
    ----------
    parameters : tensor or iterable of tensors
        As for `clip_grad_norm_`.
    max_norm : float or 0-d tensor
        As for `clip_grad_norm_`.
    total_norm : float or 0-d tensor
        The norm n ≥ 0, as `get_total_norm` gives it. Where it is NaN or infinite, the gradients become NaN. A DTensor
        whose parts are still to be joined, as PyTorch's own ``get_total_norm`` gives, is joined first.
    foreach : bool, optional
        Has no effect.

    Raises
    ------
    TypeError
        ``max_norm`` or ``total_norm`` is not a number.
    ValueError
        ``max_norm`` or ``total_norm`` is negative, or ``max_norm`` is NaN.

    Warns
    -----
    UserWarning
        As for `clip_grad_norm_`.

    References
    ----------
    ``torch.nn.utils.clip_grads_with_norm_``, PyTorch 2.

    Examples
    --------
    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> w.grad = torch.tensor([3.0, 4.0])
    >>> clip_grads_with_norm_([w], max_norm=1.0, total_norm=get_total_norm([w.grad]))
    >>> print(w.grad)
    tensor([0.6000, 0.8000])
    """
    grads, total_norm = _grads(parameters), whole(total_norm)
    arguments.norm(total_norm, backend, "total_norm")
    rules.clip_by_global_norm_(grads, max_norm, norm=total_norm)


def clip_grad_adaptive_(
    parameters: Tensors,
    clip_factor: float = 0.01,
    eps: float = 1e-3,
    norm_type: float = 2.0,
    *,
    axis: int | tuple[int, ...] | None = None,
    unit_axis: int | None = None,
) -> None:
    """Adaptive gradient clipping (AGC), straight from parameters: each unit's gradient is held against its weights.

    With G and W the gradient and the weights of one unit, G becomes r·max(‖W‖, eps)·G/‖G‖ where ‖G‖ > r·max(‖W‖, eps),
    and stays as it is elsewhere. It is `gradclip.clip_adaptive_` for parameters, with the arguments of timm's
    ``adaptive_clip_grad`` in their order. Leave out the last layer, as the paper does.

    Parameters
    ----------
    parameters : tensor or iterable of tensors
        Whose ``.grad`` is clipped; they themselves are read alone. Those without a gradient are passed over.
    clip_factor : float or 0-d tensor, default 0.01
        The factor r ≥ 0, without a unit.
    eps : float or 0-d tensor, default 1e-3
        The least norm that weights are taken to have, so that weights of zero can be trained.
    norm_type : float, default 2.0
        The order of both norms, as for `clip_grad_norm_`.
    axis : int or tuple of int, optional
        The axes that a unit's weights lie along, where ``unit_axis`` cannot say it.
    unit_axis : int, optional
        The axis that counts the units, by default the first, as PyTorch's layers have it: (out, in, …). Tensors with
        fewer than two axes are one unit.

    Raises
    ------
    TypeError
        A factor or ``eps`` is not a number.
    ValueError
        A factor or ``eps`` is negative or NaN, ``norm_type`` is not above 0, or a parameter has no such axis.

    Warns
    -----
    UserWarning
        As for `clip_grad_norm_`.

    Notes
    -----
    timm's function divides by max(‖G‖, 1e-6); here is no such bound, and gradients stay right where their squares do
    not fit their dtype.

    References
    ----------
    Brock, De, Smith and Simonyan, *High-performance large-scale image recognition without normalization*, ICML 2021,
    equation 3. ``timm.utils.agc.adaptive_clip_grad``.

    Examples
    --------
    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))  # two units, of norms 5 and 0.5
    >>> w.grad = torch.tensor([[0.3, 0.4], [0.3, 0.4]])
    >>> clip_grad_adaptive_([w], clip_factor=0.2)
    >>> print(w.grad)
    tensor([[0.3000, 0.4000],
            [0.0600, 0.0800]])
    """
    listed, ord = _listed(parameters), _order(norm_type)
    detached = {id(p): p.detach() for p in listed}  # a parameter listed twice stays one
    grads, weights = [p.grad for p in listed], [None if p.grad is None else detached[id(p)] for p in listed]
    rules.clip_adaptive_(grads, weights, clip_factor, eps=eps, ord=ord, axis=axis, unit_axis=unit_axis)


@torch.no_grad()
def fold_into(optimizer: torch.optim.Optimizer, norm: Any, max_norm: Any) -> None:
    """Let the next step of a fused optimizer clip the gradients while it reads them.

    Call it before each ``optimizer.step()``, after the last change of the gradients. With n the norm and c the
    threshold, the step divides all gradients by n/c where n > c, and takes them as they are, bit for bit, where n ≤ c.
    Where n is NaN or infinite, it changes neither parameters nor the optimizer's state, whatever c is.

    What is folded holds for these gradients and one step. A later step knows nothing of it: not after a step that was
    begun and raised, and not after one that was left out, for gradients that were replaced since are stepped on as they
    are. So are gradients that were changed in place since, and a warning says so.

    It saves the pass that `clip_grad_norm_` takes where it clips. But a step that is given a factor may write the
    gradients back, clipped or not: PyTorch's fused Adam does. Then folding pays where most steps are clipped.

    With ``torch.amp.GradScaler``, n is the norm of gradients without its scale. Call ``scaler.unscale_(optimizer)``,
    measure, fold, and call ``scaler.step(optimizer)``; or leave ``unscale_`` out, and hand in the norm of the scaled
    gradients divided by the scale. Either way, the scaler decides which steps are skipped.

    Parameters
    ----------
    optimizer : torch.optim.Adam, AdamW, SGD or Adagrad
        Made with ``fused=True``, for all of its parameter groups; or of a subclass that keeps their ``step``. The step
        of any other optimizer would not know what was folded into it.
    norm : float or 0-d tensor
        The norm n ≥ 0 of all gradients, as `gradclip.global_norm` and `get_total_norm` give it.
    max_norm : float or 0-d tensor
        The threshold c ≥ 0, in the unit of the gradients. ``inf`` clips nothing; 0 makes every gradient 0. Where only
        the device knows that it is negative or NaN, the step is skipped.

        The step reads n/c as float32. Beyond 2¹⁰⁰, gradients are clipped to 2¹⁰⁰·c first, in place. Where only the
        device knows n or c, and n/c is more than float32 can hold, the step is skipped: else each fold would cost the
        pass that it saves, or a wait.

    Raises
    ------
    TypeError
        ``optimizer`` is none of these; ``norm`` or ``max_norm`` is not a number.
    ValueError
        ``optimizer`` was made without ``fused=True``; ``norm`` or ``max_norm`` is negative, or ``max_norm`` is NaN.
        The step raises it too, if it is given a closure, which would compute other gradients. Within a closure, after
        its ``backward()``, ``fold_into`` may be called.
    RuntimeError
        Raised by the step where a ``GradScaler`` has taken in what was folded for gradients that were replaced since.

    Warns
    -----
    UserWarning
        Given by the step, where gradients were changed in place since: they are not clipped.

    References
    ----------
    ``grad_scale`` and ``found_inf``, which the fused steps of PyTorch 2 read for ``torch.amp.GradScaler``.

    Examples
    --------
    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([w], lr=1.0, fused=True)
    >>> w.grad = torch.tensor([3.0, 4.0])
    >>> fold_into(optimizer, get_total_norm([w.grad]), max_norm=1.0)
    >>> optimizer.step()
    >>> print(w.data)
    tensor([-0.6000, -0.8000])
    """
    name = type(optimizer).__name__
    step = getattr(type(optimizer), "step", None)
    # The first optimizer of a class wraps its step in the hooks.
    if step is None or not any(inspect.unwrap(step) is inspect.unwrap(kind.step) for kind in _FUSED):
        raise TypeError(
            "optimizer must be one with a fused step: Adam, AdamW, SGD or Adagrad of torch.optim, or a subclass that "
            f"keeps their step, got {name}, whose step would not clip"
        )
    if not all(group["fused"] for group in optimizer.param_groups):
        raise ValueError(f"fold_into needs a fused step: make the optimizer with {name}(..., fused=True)")
    max_norm = arguments.threshold(max_norm, backend)
    n, c = arguments.norm(norm, backend), arguments.value_of(max_norm, backend, "max_norm")
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params if p.grad is not None]
    if n is not None and c is not None and 0 < c * _MOST < n < math.inf:
        rules.clip_by_global_norm_(grads, c * _MOST, norm=n)
        n = c * _MOST
    # What the host knows is handed on as a number: to copy a tensor would make the host wait for a GPU.
    measured = backend.given(norm if n is None else n, grads or params)
    (first, second), _ = backend.clip_factors(measured, max_norm if c is None else c)
    factor = first * second
    finite = (first.new_zeros(()) + measured.mantissa).isfinite() & ~factor.isnan()
    grad_scale = (1 / factor).float()
    found_inf = (~finite | (grad_scale.isinf() & (factor > 0))).float()
    # The hooks of an optimizer are those of its first fold.
    if optimizer not in _FOLDED:
        # It tells GradScaler to leave both attributes to the step; the Adagrad of PyTorch 2.11 lacks it.
        optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
        optimizer.register_step_pre_hook(_before_step)
        optimizer.register_step_post_hook(_after_step)
    optimizer.grad_scale, optimizer.found_inf = grad_scale, found_inf  # type: ignore[attr-defined]
    _FOLDED[optimizer] = _Folded(
        grad_scale,
        found_inf,
        [(p, p.grad if p.grad is None else weakref.ref(p.grad), _version(p.grad)) for p in params],
        [
            p
            for g in optimizer.param_groups
            if g.get("momentum")
            for p in g["params"]
            if _momentum(optimizer, p) is None
        ],
    )


_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
_MOST = 2.0**100  # times max_norm: a norm up to here can be divided by it in float32


class _Folded(NamedTuple):
    """What was folded into the next step of an optimizer, and for which gradients."""

    grad_scale: torch.Tensor
    found_inf: torch.Tensor
    grads: list[tuple[torch.nn.Parameter, Any, int]]  # of each parameter: a weak reference to it, and its version
    without_momentum: list[torch.nn.Parameter]  # parameters for which the next step makes one
    begun: bool = False


_FOLDED: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Folded | None] = weakref.WeakKeyDictionary()


def _version(grad: torch.Tensor | None) -> int:
    """How often a gradient was written to; of tensors made in inference mode, PyTorch does not know."""
    return 0 if grad is None or grad.is_inference() else grad._version


def _momentum(optimizer: Any, p: torch.nn.Parameter) -> Any:
    return optimizer.state.get(p, {}).get("momentum_buffer")


def _before_step(optimizer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Runs before each step: what was folded for other gradients, or into a step that raised, is taken out again."""
    folded = _FOLDED.get(optimizer)
    if folded is None:
        return
    closure = options.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
    # A GradScaler multiplies its scale in, unless it has unscaled; and looking for NaN, it writes to the gradients.
    scaled = getattr(optimizer, "grad_scale", None) is not folded.grad_scale
    replaced = any(p.grad is not (ref and ref()) for p, ref, _ in folded.grads)
    changed = not scaled and any(_version(p.grad) != version for p, _, version in folded.grads)
    if not (closure or folded.begun or replaced or changed):
        _FOLDED[optimizer] = folded._replace(begun=True)
        return
    _FOLDED[optimizer] = None
    if optimizer.found_inf is folded.found_inf:
        del optimizer.grad_scale, optimizer.found_inf
    elif not scaled:
        optimizer.grad_scale = None  # GradScaler removes both itself
    if closure:
        raise ValueError(
            "fold_into was called before a step with a closure, which would compute other gradients; call it within "
            "the closure, after backward()"
        )
    if scaled:
        del optimizer.grad_scale, optimizer.found_inf
        raise RuntimeError(
            "what fold_into was called for, gradients that were replaced since or a step that raised, was multiplied "
            "into GradScaler's scale; call fold_into before each scaler.step"
        )
    if changed and not (replaced or folded.begun):
        warnings.warn(
            "gradients were changed after fold_into: this step takes them as they are, and does not clip; call "
            "fold_into after the last change",
            stacklevel=3,
        )


@torch.no_grad()
def _after_step(optimizer: Any, *_: Any) -> None:
    """Runs after each step: what was folded into it is not there for the next one."""
    folded, _FOLDED[optimizer] = _FOLDED.get(optimizer), None
    if folded is None:
        return
    for p in folded.without_momentum:
        # A first step of SGD that is skipped leaves its momentum as it found the memory.
        if (momentum := _momentum(optimizer, p)) is not None:
            momentum.masked_fill_(optimizer.found_inf.to(momentum.device) != 0, 0.0)
    if optimizer.found_inf is folded.found_inf:  # else GradScaler has put its own there, and removes both itself
        del optimizer.grad_scale, optimizer.found_inf


def _clip_or_raise(grads: list[Any], max_norm: Any, ord: float) -> torch.Tensor:
    """Clip, or raise as PyTorch does where a gradient is not finite."""
    try:
        norm: torch.Tensor = rules.clip_by_global_norm_(grads, max_norm, ord=ord, nonfinite="raise")
    except rules.NonFiniteGradientError as error:
        raise NonFiniteGradientError(
            f"{_nonfinite(ord)}: {error} (grads[i] is the gradient of parameters[i])"
        ) from None
    return norm


def _order(norm_type: Any) -> float:
    """The order, which may be a string, "inf", as in PyTorch."""
    try:
        ord = float(norm_type)
    except (TypeError, ValueError):
        ord = norm_type  # which the error names
    return arguments.order(ord, "norm_type")


def _nonfinite(ord: float) -> str:
    """How PyTorch's error begins, which code that catches it may look for."""
    return f"The total norm of order {ord} for gradients from `parameters` is non-finite, so it cannot be clipped"


def _listed(parameters: Tensors, stacklevel: int = 3) -> list[torch.Tensor]:
    """The parameters as a list, with a warning where a generator has none left."""
    listed = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    if isinstance(parameters, types.GeneratorType) and not listed:
        warnings.warn(  # begins as PyTorch's does, which filters may look for
            "`parameters` is an empty generator, no gradient clipping will occur. A generator such as "
            "model.parameters() can be used once; list(model.parameters()) can be used again",
            stacklevel=stacklevel,
        )
    return listed


def _grads(parameters: Tensors) -> list[Any]:
    """The gradient of each parameter, None where it has none, so that a position names a parameter."""
    grads = [p.grad for p in _listed(parameters, stacklevel=4)]
    # Without any, an empty tensor says that this is PyTorch: the norm is a tensor then, and thresholds may be.
    return grads if any(g is not None for g in grads) else [torch.zeros(0)]
