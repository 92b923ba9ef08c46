"""gradclip.lightning with Lightning's own Trainer, on tiny models: the place, once per step, the record, resumption."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

import gradclip
from gradclip import thresholds
from gradclip.lightning import ClipGradients
from gradclip.torch import clip_grad_norm_

generator = torch.Generator().manual_seed(0)
BATCHES = [(torch.randn(4, 3, generator=generator), 10 * torch.randn(4, 2, generator=generator)) for _ in range(12)]


def loss_of(net, batch):
    return torch.nn.functional.mse_loss(net(batch[0]), batch[1])


class Model(LightningModule):
    """A network that keeps what its optimizer has seen: the gradients as they are after the step."""

    def __init__(self, kind=torch.optim.SGD, **options):
        super().__init__()
        self.net = network()
        self.kind, self.options, self.seen = kind, options, []

    def training_step(self, batch, i):
        return loss_of(self.net, batch)

    def configure_optimizers(self):
        optimizer = self.kind(self.net.parameters(), lr=0.1, **self.options)
        optimizer.register_step_post_hook(lambda *_: self.seen.append([p.grad.clone() for p in self.net.parameters()]))
        return optimizer


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


class Records(Logger):
    """What the trainer hands to its loggers."""

    name, version = "records", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({key: float(value) for key, value in metrics.items()})

    def log_hyperparams(self, *_, **__):
        pass


def trainer(*callbacks, batches=12, logger=False, **options):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 1, "limit_train_batches": batches, "log_every_n_steps": 1} | quiet | options
    return Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), logger=logger, **options)


def fit(model, *callbacks, ckpt_path=None, **options):
    made = trainer(*callbacks, **options)
    made.fit(model, torch.utils.data.DataLoader(BATCHES, batch_size=None), ckpt_path=ckpt_path)
    return made


def plain_loop(accumulate=1, max_norm=1.0, kind=torch.optim.SGD, scaler=None, precision=None, **options):
    """The loop that the trainer stands for: the network after it, and the norms before clipping."""
    net = network()
    optimizer, norms = kind(net.parameters(), lr=0.1, **options), []
    for i, batch in enumerate(BATCHES):
        with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
            loss = loss_of(net, batch) / accumulate
        (scaler.scale(loss) if scaler else loss).backward()
        if (i + 1) % accumulate:
            continue
        if scaler:
            scaler.unscale_(optimizer)
        norms.append(float(clip_grad_norm_(net.parameters(), max_norm)))
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
def test_it_clips_once_per_optimizer_step_what_the_optimizer_sees(accumulate):
    """Bit for bit as the plain loop, with the norms of the accumulated gradients."""
    clip, model = ClipGradients(max_norm=1.0), Model(momentum=0.9)
    fit(model, clip, accumulate_grad_batches=accumulate)
    net, norms = plain_loop(accumulate, momentum=0.9)
    assert_same(model.net, net)
    assert clip.histories[0].norms == norms
    assert len(norms) == len(BATCHES) // accumulate
    assert max(norms) > 1.0
    for grads, norm in zip(model.seen, norms, strict=True):
        assert float(gradclip.global_norm(grads)) == pytest.approx(min(norm, 1.0), rel=1e-6)


def scaled(kind="16-mixed"):
    return torch.amp.GradScaler("cpu", init_scale=2.0**10), torch.float16 if kind == "16-mixed" else torch.bfloat16


@pytest.mark.parametrize("optimizer", [{}, {"kind": torch.optim.AdamW, "fused": True}], ids=["SGD", "fused"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_loss_scale_has_been_divided_out_or_is_taken_into_account(accumulate, optimizer):
    """Lightning divides it out before the callback, except for fused optimizers. The scale is a power of two."""
    scaler, precision = scaled()
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    clip, model = ClipGradients(max_norm=1.0), Model(**optimizer)
    fit(model, clip, plugins=[plugin], accumulate_grad_batches=accumulate)
    net, norms = plain_loop(accumulate, scaler=scaled()[0], precision=precision, **optimizer)
    assert clip.histories[0].norms == norms
    if optimizer:  # the plain loop divides the gradients out of place, the fused step in its own
        for a, b in zip(model.net.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    else:
        assert_same(model.net, net)


def test_bfloat16():
    clip, model = ClipGradients(max_norm=1.0), Model(kind=torch.optim.AdamW, fused=True)
    fit(model, clip, precision="bf16-mixed")
    net, norms = plain_loop(kind=torch.optim.AdamW, fused=True, precision=torch.bfloat16)
    assert_same(model.net, net)
    assert clip.histories[0].norms == norms


def test_a_step_that_the_scaler_skips():
    """The first scale overflows float16: the step is skipped, its norm is not finite, and no threshold learns it."""
    clip = ClipGradients(thresholds.Percentile(50))
    model = Model()
    start = copy.deepcopy(model.net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    fit(model, clip, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], batches=1)
    assert_same(model.net, start)
    assert scaler.get_scale() == 2.0**39
    assert not torch.tensor(clip.histories[0].norms).isfinite().any()
    assert clip.state_dict()["clips"][0]["threshold"] == {"history": []}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # once per process
def test_steps_without_a_gradient():
    """A training_step that gives None: nothing to clip, or, with a scaler, a step that Lightning leaves out."""

    class Sparing(Model):
        def training_step(self, batch, i):
            return super().training_step(batch, i) if i in (0, 3) else None

    for plugins in ([], [MixedPrecision("16-mixed", "cpu", scaled()[0])]):
        clip = ClipGradients(thresholds.MovingAverage(warmup=1))
        fit(Sparing(), clip, batches=4, accumulate_grad_batches=2, plugins=plugins)
        # The gradient of batch 0 lies there after batch 1: without a scaler, Lightning takes that step.
        assert len(clip.histories[0]) == (1 if plugins else 2)


# Rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "max_norm", "options", "clip"),
    [
        (
            "global_norm",
            1.0,
            {"ord": 1, "nonfinite": "zero"},
            lambda g, w: gradclip.clip_by_global_norm_(g, 1.0, ord=1),
        ),
        ("norm", 0.5, {}, lambda g, w: gradclip.clip_by_norm_(g, 0.5)),
        ("block_rms", 0.1, {}, lambda g, w: gradclip.clip_by_block_rms_(g, 0.1)),
        ("value", 0.2, {}, lambda g, w: gradclip.clip_by_value_(g, 0.2)),
        ("adaptive", 0.1, {"eps": 1e-2}, lambda g, w: gradclip.clip_adaptive_(g, w, 0.1, eps=1e-2)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_rule(rule, max_norm, options, clip):
    logger, callback = Records(), ClipGradients(max_norm, rule, **options)
    fit(Model(), callback, batches=2, logger=logger)
    net = network()
    for batch, row in zip(BATCHES[:2], logger.rows, strict=True):
        loss_of(net, batch).backward()
        grads, weights = [p.grad for p in net.parameters()], [p.detach() for p in net.parameters()]
        norm = float(gradclip.global_norm(grads, ord=options.get("ord", 2)))
        clip(grads, weights)
        assert row["gradclip/norm"] == pytest.approx(norm, rel=1e-6)
        assert row["gradclip/threshold"] == pytest.approx(max_norm)
        assert row["gradclip/clip_fraction"] == 1.0
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
                p.grad = None
    fit(Model(), none := ClipGradients(1e9, rule), batches=1)
    assert none.histories[0].clip_fraction == 0.0


def test_what_it_logs():
    """Each step's norm before clipping, its threshold, and the share of steps so far that were clipped."""
    logger, clip = Records(), ClipGradients(thresholds.MovingAverage(factor=0.9, warmup=2))
    fit(Model(), clip, logger=logger, accumulate_grad_batches=4)
    history = clip.histories[0]
    assert [row["gradclip/norm"] for row in logger.rows] == pytest.approx(history.norms)
    assert [row["gradclip/threshold"] for row in logger.rows] == pytest.approx(history.max_norms)
    clipped = [n > c for n, c in zip(history.norms, history.max_norms, strict=True)]
    shares = [sum(clipped[: i + 1]) / (i + 1) for i in range(len(clipped))]
    assert [row["gradclip/clip_fraction"] for row in logger.rows] == pytest.approx(shares)
    assert shares[-1] == history.clip_fraction > 0


# Resumption -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugins", [[], ["16-mixed"]], ids=["float32", "16-mixed"])
def test_a_run_that_was_cut_in_the_warm_up_goes_on_exactly(tmp_path, plugins):
    def run(threshold, epochs, ckpt_path=None):
        made = [MixedPrecision(kind, "cpu", scaled()[0]) for kind in plugins]
        clip, model = ClipGradients(threshold), Model(momentum=0.9)
        return clip, model, fit(model, clip, plugins=made, ckpt_path=ckpt_path, max_epochs=epochs, batches=4)

    def new():
        return thresholds.ZScore(z=0.1, warmup=6)

    straight, model, _ = run(new(), 3)
    assert 0 < straight.histories[0].clip_fraction < 1
    _, _, first = run(new(), 1)
    first.save_checkpoint(tmp_path / "cut.ckpt")
    resumed, other, _ = run(new(), 3, tmp_path / "cut.ckpt")
    assert_same(other.net, model.net)
    assert resumed.state_dict() == straight.state_dict()
    with pytest.raises(ValueError, match="the state of a Percentile has the keys history"):
        run(thresholds.Percentile(), 3, tmp_path / "cut.ckpt")


# Manual optimization and several optimizers ---------------------------------------------------------------------------


class Two(Model):
    """Two networks, each with an optimizer of its own, stepped by hand."""

    def __init__(self, late=False, raw=False):
        super().__init__()
        self.other = copy.deepcopy(self.net)
        self.automatic_optimization, self.late, self.raw = False, late, raw

    def training_step(self, batch, i):
        first, second = self.optimizers(use_pl_optimizer=not self.raw)
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss_of(self.net, batch))
        if self.late:
            first.step()
        self.manual_backward(3 * loss_of(self.other, batch))
        if not self.late:
            first.step()
        second.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.net, self.other)]


def two_plain(max_norm, joint):
    nets, norms = (network(), network()), []
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    for batch in BATCHES:
        for net, factor in zip(nets, (1, 3), strict=True):
            (factor * loss_of(net, batch)).backward()
        groups = [[p for net in nets for p in net.parameters()]] if joint else [list(n.parameters()) for n in nets]
        norms.append([float(clip_grad_norm_(group, max_norm)) for group in groups])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return nets, [list(column) for column in zip(*norms, strict=True)]


@pytest.mark.parametrize("which", ["each", "all"])
def test_several_optimizers(which, tmp_path):
    clip, model, logger = ClipGradients(1.0, optimizers=which), Two(), Records()
    run = fit(model, clip, logger=logger)
    nets, norms = two_plain(1.0, joint=which == "all")
    assert_same(model.net, nets[0])
    assert_same(model.other, nets[1])
    assert [history.norms for history in clip.histories] == norms
    names = ["gradclip/norm/0", "gradclip/norm/1"] if which == "each" else ["gradclip/norm"]
    assert [name for name in logger.rows[-1] if "norm" in name] == names
    run.save_checkpoint(tmp_path / "two.ckpt")
    again = ClipGradients(1.0, optimizers=which)
    fit(Two(), again, ckpt_path=tmp_path / "two.ckpt", max_epochs=2, batches=1)
    assert [history.norms[: len(BATCHES)] for history in again.histories] == norms
    assert [len(history) for history in again.histories] == [len(BATCHES) + 1] * len(norms)


def test_one_norm_of_all_needs_all_gradients_before_the_first_step():
    fit(Two(late=True), ClipGradients(1.0, optimizers="each"), batches=2)
    with pytest.raises(RuntimeError, match="every backward must come before the first step"):
        fit(Two(late=True), ClipGradients(1.0, optimizers="all"), batches=2)
    plugin = MixedPrecision("16-mixed", "cpu", scaled()[0])
    with pytest.raises(ValueError, match="'all' and a gradient scaler"):
        fit(Two(), ClipGradients(1.0, optimizers="all"), plugins=[plugin])


def test_steps_that_go_around_lightning_are_noticed():
    with pytest.raises(RuntimeError, match="no optimizer step came by ClipGradients"):
        fit(Two(raw=True), ClipGradients(1.0, optimizers="each"), batches=2)


# What it refuses ------------------------------------------------------------------------------------------------------


class ClipsItself(Model):
    def configure_gradient_clipping(self, optimizer, *arguments, **options):
        clip_grad_norm_(self.parameters(), 1.0)


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (Model, {"gradient_clip_val": 0.5}, r"the trainer clips too, with gradient_clip_val=0\.5"),
        (ClipsItself, {}, "ClipsItself clips too, in configure_gradient_clipping"),
        (Two, {}, "with manual optimization, training_step decides"),
        (lambda: Model(kind=torch.optim.LBFGS), {}, "LBFGS evaluates several gradients"),
    ],
    ids=["gradient_clip_val", "configure_gradient_clipping", "manual optimization", "LBFGS"],
)
def test_what_would_clip_twice_or_in_the_wrong_place_is_refused(model, options, match):
    model = model()
    start = copy.deepcopy(model.net)
    with pytest.raises(ValueError, match=match):
        fit(model, ClipGradients(max_norm=1.0), **options)
    assert_same(model.net, start)


def test_two_callbacks_are_refused():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `ClipGradients`"):
        trainer(ClipGradients(1.0), ClipGradients(1.0))


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy])
def test_strategies_whose_gradients_are_elsewhere_are_refused(strategy):
    """Neither runs on a CPU without its package, so the hook is called as the trainer would."""
    made = trainer()
    made.strategy.__class__ = strategy
    with pytest.raises(ValueError, match=f"cannot clip under {strategy.__name__}"):
        ClipGradients(1.0).setup(made, Model(), "fit")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"max_norm": -1.0}, ValueError, "max_norm must be ≥ 0"),
        ({"max_norm": "1"}, TypeError, "max_norm must be a number"),
        ({"max_norm": 1.0, "rule": "agc"}, ValueError, "rule must be one of 'global_norm', "),
        ({"max_norm": 1.0, "nonfinite": "ignore"}, ValueError, "nonfinite must be one of"),
        ({"max_norm": 1.0, "rule": "value", "ord": 2}, TypeError, "unexpected keyword argument 'ord'"),
        ({"max_norm": thresholds.ZScore(), "rule": "value"}, ValueError, "an adaptive threshold follows"),
        ({"max_norm": 1.0, "optimizers": "both"}, ValueError, "optimizers must be 'each' or 'all'"),
    ],
)
def test_arguments_are_checked_at_once(arguments, error, match):
    with pytest.raises(error, match=match):
        ClipGradients(**arguments)
