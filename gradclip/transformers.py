"""Clipping as a callback of the Trainer of transformers: ``import gradclip.transformers``."""

from typing import Any

from accelerate.state import AcceleratorState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from .history import NormHistory
from .trainers import StepClip, loss_scale

__all__ = ["ClipGradients"]

ELSEWHERE = {
    "DEEPSPEED": "DeepSpeed holds the gradients itself and clips in its own step: set gradient_clipping there",
    "FSDP": "FSDP (version 1) gives each rank a part of the gradients alone: set fsdp_version to 2 in fsdp_config",
    "MEGATRON_LM": "Megatron-LM clips in its own optimizer: set clip_grad there",
    "XLA": "XLA sums the gradients of the replicas in the step itself, after this callback",
}


class ClipGradients(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Clip once per optimizer step what the optimizer will see, and log the norm before clipping.

    Set ``max_grad_norm=0`` in the TrainingArguments: by default the Trainer clips at 1, before this callback. It runs
    in ``on_pre_optimizer_step``: after the last of the accumulated batches and after the exchange between ranks. Where
    the loss scale has not been divided out by then, gradients are clipped to the threshold times the scale, which comes
    to the same.

    To the Trainer's record with the loss it adds ``gradclip/norm``, the global norm before clipping of the last step;
    ``gradclip/threshold``; and ``gradclip/clip_fraction``, the share of all steps so far that were clipped. The
    Trainer's own ``grad_norm`` stays beside them. They are in ``state.log_history`` and go to all callbacks after this
    one. Reporters that ``report_to`` names are called before the ``callbacks=``; for them too, put it first::

        trainer.callback_handler.callbacks.insert(0, ClipGradients(max_norm=1.0))

    Checkpoints hold the history and the state of the threshold, in ``trainer_state.json``. Both go on from there, and
    through further calls of ``train``: make a new callback for a new run.

    Parameters
    ----------
    max_norm : float or threshold object
        The threshold of the rule, in the unit of the gradients (without a unit for ``"adaptive"``). With the global
        norm, it may be an object of `gradclip.thresholds`, or another with ``update(norm)``, ``state_dict()`` and
        ``load_state_dict(state)``, where the state is plain numbers and lists.
    rule : {"global_norm", "norm", "block_rms", "value", "adaptive"}
        `gradclip.clip_by_global_norm_`, `gradclip.clip_by_norm_` (each array by its own norm),
        `gradclip.clip_by_block_rms_`, `gradclip.clip_by_value_`, or `gradclip.clip_adaptive_` (AGC, whose factor is
        ``max_norm``).
    **options
        Further arguments of the rule: ``ord``, ``nonfinite``, ``axis``, ``eps``, ``unit_axis``.

    Raises
    ------
    TypeError, ValueError
        ``rule`` or an option is none of the above, or a threshold is negative or NaN. At the start of ``train``: the
        Trainer clips too (``max_grad_norm`` is not 0); there are two of these callbacks; or gradients are elsewhere
        (DeepSpeed, FSDP of version 1, Megatron-LM, XLA).

    Notes
    -----
    The norm is read on the host in each step; on a GPU, that waits for the backward pass.

    With ``max_grad_norm=0`` the Trainer takes a norm for its log by clipping at infinity. Where that norm is infinite,
    PyTorch multiplies by inf/inf: all gradients are NaN before this callback sees them.

    ``restore_callback_states_from_checkpoint`` is not needed, and makes a new callback from what the checkpoint knows
    of this one, with the settings of then. That works for a number and for the classes of `gradclip.thresholds`.

    References
    ----------
    ``transformers.Trainer``, transformers 5.24.

    Examples
    --------
    >>> from gradclip import thresholds
    >>> clip = ClipGradients(thresholds.ZScore(z=3.0, cap=1.0))
    >>> clip.history.clip_fraction  # of the steps that trainer.train() took, with callbacks=[clip]
    0.0
    """

    def __init__(self, max_norm: Any, rule: str = "global_norm", **options: Any) -> None:
        self._clip = StepClip(max_norm, rule, options)
        self._values: dict[str, float] = {}

    @property
    def history(self) -> NormHistory:
        """The norms and thresholds of all steps.

        With a rule other than the global norm, the norm that was let through stands in the place of the threshold.
        """
        return self._clip.history

    @property
    def learned(self) -> dict[str, Any]:
        """The history and the state of the threshold, as plain numbers and lists."""
        return self._clip.state_dict()

    @learned.setter
    def learned(self, state: dict[str, Any]) -> None:
        self._clip.load_state_dict(state)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into its checkpoints."""
        return {"args": self._clip.settings(), "attributes": {"learned": self.learned}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a Trainer in which this would be a second clip, or in the wrong place; continue from a checkpoint."""
        if args.max_grad_norm:
            raise ValueError(
                f"the Trainer clips too, with max_grad_norm={args.max_grad_norm} (1.0 is its default): set "
                "TrainingArguments(max_grad_norm=0), or leave ClipGradients out"
            )
        kind = AcceleratorState().distributed_type.name
        sharded = kind == "FSDP" and AcceleratorState().fsdp_plugin.fsdp_version == 2
        if kind in ELSEWHERE and not sharded:
            raise ValueError(f"ClipGradients cannot clip under {kind}: {ELSEWHERE[kind]}")
        saved = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(saved, list):
            raise ValueError("the Trainer has two ClipGradients, which would clip twice: leave one out")
        if saved is not None:
            self.learned = saved["attributes"]["learned"]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clip."""
        optimizer = wrapper = kwargs["optimizer"]
        while hasattr(optimizer, "optimizer"):  # Accelerate's wrapper, whose scaler knows the optimizer in it
            optimizer = optimizer.optimizer
        scale = loss_scale(getattr(wrapper, "scaler", None), optimizer)
        self._values = self._clip([p for group in optimizer.param_groups for p in group["params"]], scale) or {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the last step's values to the record that holds the loss."""
        if logs is not None and "loss" in logs:
            logs.update(self._values)
            state.log_history[-1].update(self._values)
