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

`fold_into` has no counterpart there: a fused optimizer clips in its own step.
"""

import types
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from . import arguments, rules
from .backends import torch as backend

__all__ = [
    "NonFiniteGradientError",
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
        gradients whose norm overflows float32 do not count, and keep their direction.
    foreach : bool, optional
        Has no effect.

    Returns
    -------
    0-d tensor
        The norm before clipping: float64 if a gradient is float64 or complex128, else float32. 0.0 without gradients.

    Raises
    ------
    TypeError
        ``max_norm`` is not a number.
    ValueError
        ``max_norm`` is negative or NaN, or ``norm_type`` is not above 0.
    NonFiniteGradientError
        With ``error_if_nonfinite``. It is a RuntimeError, names the parameters by position, and nothing has been
        written.

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
    try:
        norm: torch.Tensor = rules.clip_by_global_norm_(
            _grads(parameters), max_norm, ord=float(norm_type), nonfinite="raise" if error_if_nonfinite else "nan"
        )
    except rules.NonFiniteGradientError as error:
        raise NonFiniteGradientError(f"{error} (grads[i] is the gradient of parameters[i])") from None
    return norm


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
    rules.clip_by_value_(_grads(parameters), clip_value)


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
        Whether to raise where a tensor is not finite.
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
        With ``error_if_nonfinite``. It is a RuntimeError, and names the tensors by position.

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
    norm: torch.Tensor = rules.global_norm(tensors or [torch.zeros(0)], ord=float(norm_type))
    if error_if_nonfinite and not norm.isfinite():
        bad = [f"tensors[{i}]" for i, t in enumerate(tensors) if not t.isfinite().all()]
        if bad:  # else all tensors are finite, and their norm does not fit float32
            raise NonFiniteGradientError(f"not finite: {', '.join(bad)}")
    return norm


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
        The norm n ≥ 0, as `get_total_norm` gives it. Where it is NaN or infinite, the gradients become NaN.
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
    rules.clip_by_global_norm_(_grads(parameters), max_norm, norm=total_norm)


@torch.no_grad()
def fold_into(optimizer: torch.optim.Optimizer, norm: Any, max_norm: Any) -> None:
    """Let the next step of a fused optimizer clip the gradients while it reads them.

    Call it before each ``optimizer.step()`` (without a closure). With n the norm and c the threshold, the step divides
    all gradients by n/c where n > c, and takes them as they are, bit for bit, where n ≤ c. Where n is NaN or infinite,
    it changes neither parameters nor the optimizer's state, whatever c is. A later step knows nothing of it.

    It saves the pass that `clip_grad_norm_` takes where it clips. But a step that is given a factor may write the
    gradients back, clipped or not: PyTorch's fused Adam does. Then folding pays where most steps are clipped.

    With ``torch.amp.GradScaler``, n is the norm of gradients without its scale. Call ``scaler.unscale_(optimizer)``,
    measure, fold, and call ``scaler.step(optimizer)``; or leave ``unscale_`` out, and hand in the norm of the scaled
    gradients divided by the scale. Either way, the scaler decides which steps are skipped.

    Parameters
    ----------
    optimizer : torch.optim.Adam, AdamW or SGD
        Made with ``fused=True``, for all of its parameter groups.
    norm : float or 0-d tensor
        The norm n ≥ 0 of all gradients, as `gradclip.global_norm` and `get_total_norm` give it.
    max_norm : float or 0-d tensor
        The threshold c ≥ 0, in the unit of the gradients. ``inf`` clips nothing; 0 makes every gradient 0. Where only
        the device knows that it is negative or NaN, the step is skipped.

    Raises
    ------
    TypeError
        ``optimizer`` is not an optimizer, or has no fused step; ``norm`` or ``max_norm`` is not a number.
    ValueError
        ``optimizer`` was made without ``fused=True``; ``norm`` or ``max_norm`` is negative, or ``max_norm`` is NaN.

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
    if not isinstance(optimizer, torch.optim.Optimizer) or "fused" not in optimizer.defaults:
        raise TypeError(
            f"optimizer must be one with a fused step, such as Adam, AdamW or SGD of torch.optim, got {name}"
        )
    if not all(group["fused"] for group in optimizer.param_groups):
        raise ValueError(f"fold_into needs a fused step: make the optimizer with {name}(..., fused=True)")
    max_norm = arguments.threshold(max_norm, backend)
    number = arguments.value_of(norm, backend, "norm")
    if number is not None and number < 0:
        raise ValueError(f"norm must be ≥ 0, got {number}")
    device = next((p.device for group in optimizer.param_groups for p in group["params"]), torch.device("cpu"))
    # What the host knows is filled in: to copy it would make the host wait for a GPU.
    n, c = (
        x.to(device, torch.float64)
        if isinstance(x, torch.Tensor) and not x.is_cpu
        else torch.full((), float(x), dtype=torch.float64, device=device)
        for x in (norm, max_norm)
    )
    # As in clip_by_global_norm_, a threshold is compared in the dtype of the norm: a norm just measured clips nothing.
    its = norm.dtype if isinstance(norm, torch.Tensor) and norm.is_floating_point() else torch.float64
    keep = (n.to(its) <= c.to(its)) | (c == torch.inf)
    optimizer.grad_scale = torch.where(keep, 1.0, n / c).to(torch.float32)  # type: ignore[attr-defined]
    optimizer.found_inf = (~(n.isfinite() & (c >= 0))).to(torch.float32)  # type: ignore[attr-defined]
    unborn = [
        p
        for group in optimizer.param_groups
        for p in group["params"]
        if group.get("momentum") and optimizer.state.get(p, {}).get("momentum_buffer") is None
    ]
    if optimizer not in _FOLDED:
        optimizer.register_step_post_hook(_unfold)
    _FOLDED[optimizer] = optimizer.found_inf, unborn  # type: ignore[attr-defined]


# What was folded into the next step of an optimizer: found_inf, and the parameters without a momentum so far.
_FOLDED: weakref.WeakKeyDictionary[torch.optim.Optimizer, Any] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _unfold(optimizer: Any, *_: Any) -> None:
    """Runs after each step: what was folded into it must not be felt in the next one."""
    folded, _FOLDED[optimizer] = _FOLDED.get(optimizer), None
    if folded is None:
        return
    found_inf, unborn = folded
    for p in unborn:
        # A first step of SGD that is skipped leaves its momentum as it found the memory.
        buffer = optimizer.state.get(p, {}).get("momentum_buffer")
        if buffer is not None:
            buffer.masked_fill_(optimizer.found_inf.to(buffer.device) != 0, 0.0)
    if optimizer.found_inf is found_inf:  # else GradScaler has put its own there, and removes both itself
        del optimizer.grad_scale, optimizer.found_inf


def _grads(parameters: Tensors) -> list[Any]:
    """The gradient of each parameter, None where it has none, so that a position names a parameter."""
    listed = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    if isinstance(parameters, types.GeneratorType) and not listed:
        warnings.warn(
            "parameters is an empty generator: no gradient is clipped. A generator such as model.parameters() can be "
            "used once; list(model.parameters()) can be used again",
            stacklevel=3,
        )
    grads = [p.grad for p in listed]
    # Without any, an empty tensor says that this is PyTorch: the norm is a tensor then, and thresholds may be.
    return grads if any(g is not None for g in grads) else [torch.zeros(0)]
