"""Clipping as a callback of Lightning's Trainer: ``import gradclip.lightning``."""

import copy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, XLAStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from .history import NormHistory
from .trainers import StepClip, loss_scale

__all__ = ["ClipGradients"]

ELSEWHERE = {
    DeepSpeedStrategy: "DeepSpeed holds the gradients itself and clips in its own step: set gradient_clipping there",
    FSDPStrategy: "FSDP (version 1) gives each rank a part of the gradients alone: use ModelParallelStrategy with "
    "fully_shard, whose gradients are DTensors",
    XLAStrategy: "XLA sums the gradients of the replicas in the step itself, after this callback",
}


class ClipGradients(Callback):  # type: ignore[misc]
    """Clip once per optimizer step what the optimizer will see, and log the norm before clipping.

    It runs in ``on_before_optimizer_step``: after the last of the accumulated batches, after the exchange between
    ranks, and after the loss scale has been divided out. Where a fused optimizer divides it out in its own step,
    gradients are clipped to the threshold times the scale, which comes to the same.

    With ``self.log`` of the module, and so to the trainer's loggers, go ``gradclip/norm``, the global norm before
    clipping; ``gradclip/threshold``; and ``gradclip/clip_fraction``, the share of all steps so far that were clipped.
    Checkpoints hold the history and the state of the threshold. Both go on from there, and through further calls of
    ``fit``: make a new callback for a new run.

    Parameters
    ----------
    max_norm : float or threshold object
        The threshold of the rule, in the unit of the gradients (without a unit for ``"adaptive"``). With the global
        norm, it may be an object of `gradclip.thresholds`, or another with ``update(norm)``, ``state_dict()`` and
        ``load_state_dict(state)``.
    rule : {"global_norm", "norm", "block_rms", "value", "adaptive"}
        `gradclip.clip_by_global_norm_`, `gradclip.clip_by_norm_` (each array by its own norm),
        `gradclip.clip_by_block_rms_`, `gradclip.clip_by_value_`, or `gradclip.clip_adaptive_` (AGC, whose factor is
        ``max_norm``).
    optimizers : {"each", "all"}, optional
        Needed with manual optimization, and so with several optimizers. ``"each"``: whenever an optimizer steps, the
        gradients of its parameters are clipped by their own norm, with a threshold and a history of its own. ``"all"``:
        one norm of all optimizers' gradients, taken when the first of them steps, by when all must be there.
    **options
        Further arguments of the rule: ``ord``, ``nonfinite``, ``axis``, ``eps``, ``unit_axis``.

    Attributes
    ----------
    histories : list of gradclip.NormHistory
        The norms and thresholds of all steps, one history for each optimizer that is clipped by itself. With a rule
        other than the global norm, the norm that was let through stands in the place of the threshold.

    Raises
    ------
    TypeError, ValueError
        ``rule`` or an option is none of the above, or a threshold is negative or NaN. At the start of ``fit``: the
        trainer or the module clips too (``gradient_clip_val``, ``configure_gradient_clipping``); manual optimization
        without ``optimizers``; a strategy whose gradients are elsewhere (DeepSpeed, FSDP of version 1, XLA); the
        optimizer LBFGS, which evaluates several gradients in one step; ``optimizers="all"`` with a gradient scaler.
    RuntimeError
        Manual optimization in which no step came by here, since it went around Lightning's optimizers; or, with
        ``"all"``, gradients that changed after their norm was taken.

    Notes
    -----
    The norm is read on the host in each step; on a GPU, that waits for the backward pass.

    References
    ----------
    ``lightning.pytorch.plugins.precision``, Lightning 2.6.

    Examples
    --------
    >>> from lightning.pytorch import Trainer
    >>> clip = ClipGradients(max_norm=1.0)
    >>> trainer = Trainer(
    ...     callbacks=[clip], accelerator="cpu", logger=False, enable_checkpointing=False,
    ...     enable_progress_bar=False, enable_model_summary=False,
    ... )
    >>> clip.histories[0].clip_fraction  # of the steps that trainer.fit(model) took
    0.0
    """

    def __init__(
        self, max_norm: Any, rule: str = "global_norm", *, optimizers: str | None = None, **options: Any
    ) -> None:
        if optimizers not in (None, "each", "all"):
            raise ValueError(f"optimizers must be 'each' or 'all', got {optimizers!r}")
        self.optimizers = optimizers
        self._clips = [StepClip(max_norm, rule, options)]
        self._new = copy.deepcopy(self._clips[0])  # for further optimizers
        self._awaited: dict[Any, list[tuple[Any, int]]] = {}  # optimizers to step with gradients that are clipped
        self._came_by = False

    @property
    def histories(self) -> list[NormHistory]:
        """The norms and thresholds of all steps, for each optimizer that is clipped by itself."""
        return [clip.history for clip in self._clips]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a trainer in which this would be a second clip, or in the wrong place."""
        if stage != "fit":
            return
        if trainer.gradient_clip_val:
            raise ValueError(
                f"the trainer clips too, with gradient_clip_val={trainer.gradient_clip_val}: leave that out, or leave "
                "ClipGradients out"
            )
        if is_overridden("configure_gradient_clipping", pl_module):
            raise ValueError(
                f"{type(pl_module).__name__} clips too, in configure_gradient_clipping: leave that method out, or "
                "leave ClipGradients out"
            )
        for strategy, why in ELSEWHERE.items():
            if isinstance(trainer.strategy, strategy):
                raise ValueError(f"ClipGradients cannot clip under {strategy.__name__}: {why}")
        if not pl_module.automatic_optimization and self.optimizers is None:
            raise ValueError(
                "with manual optimization, training_step decides when optimizers step and may clip by itself: pass "
                "optimizers='each' or optimizers='all' if it does not and steps through self.optimizers(); or clip "
                "there, after the last backward, and leave ClipGradients out"
            )
        self._came_by = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give each optimizer its own threshold and history, where that was asked for."""
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise ValueError("LBFGS evaluates several gradients in one step; ClipGradients clips one for each step")
        if self.optimizers == "all" and getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                "with optimizers='all' and a gradient scaler, some gradients are still scaled when the first optimizer "
                "steps: train in bf16-mixed, or pass optimizers='each'"
            )
        count = len(trainer.optimizers) if self.optimizers == "each" else 1
        self._clips += [copy.deepcopy(self._new) for _ in range(count - len(self._clips))]
        if len(self._clips) != count:
            raise ValueError(f"the callback's state is of {len(self._clips)} optimizers, this run has {count}")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Clip, and log the norm before clipping."""
        self._came_by = True
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = loss_scale(scaler, optimizer)
        if scale != 1 and not getattr(optimizer, "_step_supports_amp_scaling", False):
            return  # Lightning leaves such a step out: training_step gave None
        if self.optimizers == "all":
            if not self._takes_all(trainer, optimizer):
                return
            clip, suffix, stepped = self._clips[0], "", trainer.optimizers
        else:
            i = trainer.optimizers.index(optimizer)
            clip, suffix, stepped = self._clips[i], f"/{i}" if len(self._clips) > 1 else "", [optimizer]
        values = clip([p for o in stepped for group in o.param_groups for p in group["params"]], scale)
        self._awaited = {o: _versions(o) for o in self._awaited}
        if values:
            pl_module.log_dict({name + suffix: value for name, value in values.items()}, on_step=True, on_epoch=False)

    def _takes_all(self, trainer: Trainer, optimizer: Any) -> bool:
        """Whether this step is the first of a round; in the others of the round, gradients must be as they were."""
        if not self._awaited:
            self._awaited = {o: [] for o in trainer.optimizers if o is not optimizer}
            return True
        if self._awaited.pop(optimizer, None) != _versions(optimizer):
            self._awaited = {}
            raise RuntimeError(
                "with optimizers='all', every backward must come before the first step, and each optimizer steps once "
                "in a round; gradients changed after their norm was taken"
            )
        return False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell that nothing was clipped, where steps went around Lightning."""
        if not (self._came_by or pl_module.automatic_optimization):
            raise RuntimeError(
                "no optimizer step came by ClipGradients: step through self.optimizers(), not through "
                "self.optimizers(use_pl_optimizer=False) or optimizers of your own"
            )

    def state_dict(self) -> dict[str, Any]:
        """The histories and the states of the thresholds, for the trainer's checkpoint."""
        return {"clips": [clip.state_dict() for clip in self._clips]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        clips = self._clips[:1] + [copy.deepcopy(self._new) for _ in state_dict["clips"][1:]]
        for clip, state in zip(clips, state_dict["clips"], strict=True):
            clip.load_state_dict(state)
        self._clips = clips


def _versions(optimizer: Any) -> list[tuple[Any, int]]:
    """What tells whether the gradients of an optimizer have changed."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [(id(grad), grad._version) for grad in grads]
