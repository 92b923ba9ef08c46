"""gradclip.transformers with the Trainer of transformers, on tiny models: the place, the record, resumption."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer, TrainerCallback, TrainingArguments

import gradclip
from gradclip import thresholds
from gradclip.torch import clip_grad_norm_
from gradclip.transformers import ClipGradients


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """Each ``train()`` begins with one, which takes ten times as long as the rest of these runs."""
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda: 0)


generator = torch.Generator().manual_seed(0)
DATA = [
    {"x": torch.randn(3, generator=generator), "labels": 10 * torch.randn(2, generator=generator)} for _ in range(24)
]


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))

    def forward(self, x, labels):
        return {"loss": torch.nn.functional.mse_loss(self.layers(x), labels)}


def sgd(model):
    """An optimizer that keeps the norm of the gradients that it stepped along."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.seen = []

    def look(*_):
        optimizer.seen.append(float(gradclip.global_norm([p.grad for p in model.parameters()])))

    optimizer.register_step_post_hook(look)
    return optimizer


def fused(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(folder, *callbacks, make=sgd, **options):
    model = Network()
    optimizer = make(model)
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_grad_norm": 0,
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
    }
    args = TrainingArguments(**(settings | options))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return InOrder(model, args, train_dataset=DATA, optimizers=(optimizer, scheduler), callbacks=list(callbacks))


def plain_loop(accumulate=1, steps=6, make=sgd, scaler=None):
    """The loop that the Trainer stands for: the network after it, and the norms before clipping."""
    net = Network()
    optimizer, norms = make(net), []
    for step in range(steps):
        for part in range(accumulate):
            at = 2 * (accumulate * step + part)
            batch = {key: torch.stack([DATA[at][key], DATA[at + 1][key]]) for key in ("x", "labels")}
            loss = net(**batch)["loss"] / accumulate
            (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale_(optimizer)
        norms.append(float(clip_grad_norm_(net.parameters(), 1.0)))
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()
    return net, norms


def assert_same(net, other):
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# The place ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_clips_once_per_optimizer_step_what_the_optimizer_sees(tmp_path, accumulate):
    """Bit for bit as the plain loop, with the norms of the accumulated gradients."""
    steps = 6 if accumulate == 1 else 3
    clip = ClipGradients(max_norm=1.0)
    made = trainer(tmp_path, clip, gradient_accumulation_steps=accumulate, max_steps=steps)
    made.train()
    net, norms = plain_loop(accumulate, steps)
    assert_same(made.model, net)
    assert clip.history.norms == norms
    assert max(norms) > 1.0
    assert made.optimizer.optimizer.seen == pytest.approx([min(n, 1.0) for n in norms], rel=1e-6)


@pytest.mark.parametrize("divided_out", [False, True])
@pytest.mark.parametrize("make", [sgd, fused])
def test_a_loss_scale_has_been_divided_out_or_is_taken_into_account(tmp_path, make, divided_out):
    """Accelerate has no fp16 on the CPU, so its scaler is put in by hand. The scale is a power of two.

    Whether the Trainer has divided it out when the callback comes depends on how it takes the norm for its log.
    """
    scaler, clip = torch.amp.GradScaler("cpu", init_scale=2.0**10), ClipGradients(max_norm=1.0)
    made = trainer(tmp_path, clip, make=make, gradient_accumulation_steps=2, max_steps=3)
    made.accelerator.scaler = scaler
    made.accelerator.unscale_gradients = lambda *_: divided_out and scaler.unscale_(made.optimizer.optimizer)
    made.train()
    net, norms = plain_loop(2, 3, make, torch.amp.GradScaler("cpu", init_scale=2.0**10))
    assert clip.history.norms == norms
    if make is sgd:
        assert_same(made.model, net)
    else:  # a fused step divides the scale out by itself, rounding otherwise
        for a, b in zip(made.model.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_bfloat16(tmp_path):
    clip = ClipGradients(max_norm=1.0)
    made = trainer(tmp_path, clip, bf16=True)
    made.train()
    assert len(clip.history) == 6
    assert clip.history.clip_fraction == 1.0
    assert made.optimizer.optimizer.seen == pytest.approx([1.0] * 6, rel=1e-6)


# The record -----------------------------------------------------------------------------------------------------------


class Reporter(TrainerCallback):
    """A tracker, as ``report_to`` names one: it is called before the callbacks that the user passes."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append(dict(logs))


def test_what_it_logs(tmp_path):
    """One record with the loss, the Trainer's own norm and ours, in log_history and for reporters that come later."""
    clip = ClipGradients(thresholds.MovingAverage(factor=0.9, warmup=2))
    before, after = Reporter(), Reporter()
    made = trainer(tmp_path, before, clip, after, gradient_accumulation_steps=2)
    made.train()
    rows = [row for row in made.state.log_history if "loss" in row]
    assert [row["gradclip/norm"] for row in rows] == clip.history.norms
    assert [row["grad_norm"] for row in rows] == pytest.approx(clip.history.norms, rel=1e-6)
    assert [row["gradclip/threshold"] for row in rows] == clip.history.max_norms
    clipped = [n > c for n, c in zip(clip.history.norms, clip.history.max_norms, strict=True)]
    shares = [sum(clipped[: i + 1]) / (i + 1) for i in range(len(clipped))]
    assert [row["gradclip/clip_fraction"] for row in rows] == shares
    assert shares[-1] > 0
    assert [row.get("gradclip/norm") for row in after.rows if "loss" in row] == clip.history.norms
    assert not any("gradclip/norm" in row for row in before.rows)
    assert not any("gradclip/norm" in row for row in made.state.log_history if "loss" not in row)


def test_put_first_it_reaches_every_reporter(tmp_path):
    reporter, clip = Reporter(), ClipGradients(max_norm=1.0)
    made = trainer(tmp_path, reporter, max_steps=2)
    made.callback_handler.callbacks.insert(0, clip)
    made.train()
    assert [row["gradclip/norm"] for row in reporter.rows if "loss" in row] == clip.history.norms
    assert len(clip.history) == 2


# Resumption -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize(
    "new",
    [
        lambda: thresholds.ZScore(z=0.1, warmup=4, cap=20.0),
        lambda: thresholds.MovingAverage(0.9, warmup=4),
        lambda: thresholds.Percentile(50, window=5),
        lambda: 1.0,
    ],
    ids=["ZScore", "MovingAverage", "Percentile", "number"],
)
def test_a_run_that_was_cut_in_the_warm_up_goes_on_exactly(tmp_path, new, restore):
    straight = ClipGradients(new())
    whole = trainer(tmp_path, straight, save_strategy="steps", save_steps=3)
    whole.train()
    assert straight.history.clip_fraction > 0
    made = trainer(tmp_path, ClipGradients(new()), restore_callback_states_from_checkpoint=restore)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(made.model, whole.model)
    (resumed,) = [callback for callback in made.callback_handler.callbacks if isinstance(callback, ClipGradients)]
    assert resumed.state() == straight.state()
    saved = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert len(saved["stateful_callbacks"]["ClipGradients"]["attributes"]["learned"]["history"]["norms"]) == 3


def test_a_threshold_of_ones_own(tmp_path):
    """It resumes as the others do. What cannot be made anew from a checkpoint says so."""

    class Doubling:
        def __init__(self):
            self.value = 1.0

        def update(self, norm):
            self.value *= 2
            return self.value

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    trainer(tmp_path, ClipGradients(Doubling()), save_strategy="steps", save_steps=3, max_steps=3).train()
    checkpoint, clip = str(tmp_path / "checkpoint-3"), ClipGradients(Doubling())
    trainer(tmp_path, clip, max_steps=4).train(resume_from_checkpoint=checkpoint)
    assert clip.history.max_norms == [2.0, 4.0, 8.0, 16.0]
    made = trainer(tmp_path, ClipGradients(Doubling()), max_steps=4, restore_callback_states_from_checkpoint=True)
    with pytest.raises(TypeError, match="max_norm must be a number or a 0-d array, got 'Doubling'"):
        made.train(resume_from_checkpoint=checkpoint)


# What it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.5])
def test_a_trainer_that_clips_too_is_refused(tmp_path, max_grad_norm):
    made = trainer(tmp_path, ClipGradients(1.0), max_grad_norm=max_grad_norm)
    with pytest.raises(ValueError, match=rf"the Trainer clips too, with max_grad_norm={max_grad_norm}"):
        made.train()
    assert_same(made.model, Network())
    assert TrainingArguments().max_grad_norm == 1.0  # by default, so that the error is what most users see first


def test_two_callbacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two ClipGradients, which would clip twice"):
        trainer(tmp_path, ClipGradients(1.0), ClipGradients(2.0)).train()


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_strategies_whose_gradients_are_elsewhere_are_refused(tmp_path, monkeypatch, kind):
    """None of them runs here, so the event is called as the Trainer would, in the state that Accelerate has then."""
    made = trainer(tmp_path, clip := ClipGradients(1.0))
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state._shared_state, "distributed_type", DistributedType[kind])
    monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", FullyShardedDataParallelPlugin(fsdp_version=1))
    with pytest.raises(ValueError, match=f"cannot clip under {kind}: "):
        clip.on_train_begin(made.args, made.state, made.control)


def test_arguments_are_checked_at_once():
    with pytest.raises(ValueError, match="max_norm must be ≥ 0"):
        ClipGradients(-1.0)
    with pytest.raises(ValueError, match="rule must be one of 'global_norm', "):
        ClipGradients(1.0, "agc")
    with pytest.raises(ValueError, match="nonfinite must be one of"):
        ClipGradients(1.0, nonfinite="ignore")


def test_adaptive_clipping(tmp_path):
    """The rules themselves are tested with Lightning; this one needs the weights as well."""
    clip = ClipGradients(0.01, "adaptive", eps=1e-2)
    made = trainer(tmp_path, clip, max_steps=1, make=lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    made.train()
    net = Network()
    batch = {key: torch.stack([DATA[0][key], DATA[1][key]]) for key in ("x", "labels")}
    net(**batch)["loss"].backward()
    gradclip.clip_adaptive_([p.grad for p in net.parameters()], [p.detach() for p in net.parameters()], 0.01, eps=1e-2)
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert_same(made.model, net)
    assert clip.history.clip_fraction == 1.0
    assert clip.state()["args"] == {"max_norm": 0.01, "rule": "adaptive", "eps": 1e-2}
