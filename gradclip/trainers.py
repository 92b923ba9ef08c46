"""What the callbacks for trainers share: one clip per optimizer step, its record, and the state of both."""

import inspect
from collections.abc import Iterable
from math import inf, isfinite
from typing import Any

import torch
from torch.amp.grad_scaler import OptState

from . import checks, rules, thresholds
from .history import NormHistory

RULES = {
    "global_norm": rules.clip_by_global_norm_,
    "norm": rules.clip_by_norm_,
    "block_rms": rules.clip_by_block_rms_,
    "value": rules.clip_by_value_,
    "adaptive": rules.clip_adaptive_,
}


class StepClip:
    """A rule with its threshold, called with the parameters before each optimizer step.

    ``max_norm`` is a number; an object with ``update``, ``state_dict`` and ``load_state_dict``, as those of
    `gradclip.thresholds` are; or one of the latter as `settings` gives it. ``options`` are further arguments of the
    rule. `history` has a step for each call.
    """

    def __init__(self, max_norm: Any, rule: str, options: dict[str, Any]) -> None:
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
        if isinstance(max_norm, dict):
            ((kind, arguments),) = max_norm.items()
            max_norm = getattr(thresholds, kind)(**arguments)
        self.threshold = max_norm if hasattr(max_norm, "update") else None
        if self.threshold is not None and rule != "global_norm":
            raise ValueError(f"an adaptive threshold follows the global norm; with rule={rule!r}, pass a number")
        self.max_norm = max_norm if self.threshold is not None else checks.threshold(max_norm)
        self.rule, self.options, self.history = rule, options, NormHistory()
        self.clipped = 0
        self._clip([torch.zeros(1)], [torch.zeros(1)], 1.0)  # for the errors of options that the rule does not take

    def __call__(self, params: Iterable[torch.Tensor], scale: float = 1.0) -> dict[str, float] | None:
        """Clip the gradients of parameters, and give what is to be logged; None where there are no gradients.

        ``scale`` is the loss scale that the gradients still carry. Every rule gives the same when gradients and
        threshold are multiplied by it.
        """
        params = [p for p in params if p.grad is not None]
        if not params:
            return None
        grads, weights = [p.grad for p in params], [p.detach() for p in params]
        if self.rule == "global_norm":
            norm, max_norm = self._clip_global_norm(grads, scale)
            limit = max_norm
        else:
            norm, max_norm = float(rules.global_norm(grads)) / scale, self.max_norm
            self._clip(grads, weights, max_norm * scale)
            left = float(rules.global_norm(grads)) / scale
            limit = left if isfinite(left) else inf
        self.history.record(norm, limit)
        self.clipped += norm > limit
        fraction = self.clipped / len(self.history)
        return {"gradclip/norm": norm, "gradclip/threshold": max_norm, "gradclip/clip_fraction": fraction}

    def _clip_global_norm(self, grads: list[Any], scale: float) -> tuple[float, float]:
        if self.threshold is None:
            return float(self._clip(grads, [], self.max_norm * scale)) / scale, self.max_norm
        measured = float(rules.global_norm(grads, ord=self.options.get("ord", 2)))
        norm = measured / scale
        max_norm = float(self.threshold.update(norm))
        # Finite gradients whose norm overflows float32 are measured again by the rule, which keeps their direction.
        self._clip(grads, [], max_norm * scale, **({"norm": measured} if isfinite(measured) else {}))
        return norm, max_norm

    def _clip(self, grads: list[Any], weights: list[Any], max_norm: float, **options: Any) -> Any:
        between = [weights] if self.rule == "adaptive" else []
        return RULES[self.rule](grads, *between, max_norm, **self.options, **options)  # type: ignore[operator]

    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor in a form that JSON can hold; of an unknown threshold, its name."""
        max_norm = self.max_norm
        if self.threshold is not None:
            kind = type(max_norm).__name__
            names = inspect.signature(type(max_norm)).parameters
            known = type(max_norm) is getattr(thresholds, kind, None)
            max_norm = {kind: {name: getattr(max_norm, name) for name in names}} if known else kind
        return {"max_norm": max_norm, "rule": self.rule, **self.options}

    def state_dict(self) -> dict[str, Any]:
        """The history, and what an adaptive threshold has learned."""
        learned = None if self.threshold is None else self.threshold.state_dict()
        return {"history": self.history.state_dict(), "threshold": learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. A threshold goes on from what it had learned; one that is new here starts anew."""
        history, learned = checks.entries(state, self, "history", "threshold")
        if self.threshold is not None and learned is not None:
            self.threshold.load_state_dict(learned)
        self.history.load_state_dict(history)
        self.clipped = sum(n > c for n, c in zip(self.history.norms, self.history.max_norms, strict=True))


def loss_scale(scaler: Any, optimizer: Any) -> float:
    """The loss scale that the gradients of an optimizer still carry; 1 where it has been divided out, or is none."""
    if scaler is None or not scaler.is_enabled():
        return 1.0
    carried = scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY
    return float(scaler.get_scale()) if carried else 1.0
