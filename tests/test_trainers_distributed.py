"""The trainers' callbacks on two ranks, under DDP and FSDP2: the norms that one process has, the same on every rank."""

import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gradclip.torch import clip_grad_norm_

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or sys.platform != "linux", reason="needs gloo"
)

generator = torch.Generator().manual_seed(0)
X, Y = torch.randn(16, 3, generator=generator), 10 * torch.randn(16, 2, generator=generator)
STEPS, BATCH = 4, 4
SNIPPETS = Path(__file__).parents[1] / "book" / "snippets"


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def batches(ranks=1, rank=0):
    """The batches of one process, or this rank's part of them."""
    rows = [range(BATCH * step, BATCH * (step + 1))[rank::ranks] for step in range(STEPS)]
    return [(X[list(r)], Y[list(r)]) for r in rows]


def one_process():
    """The norms of a plain loop, and the network after it."""
    net, norms = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in batches():
        torch.nn.functional.mse_loss(net(x), y).backward()
        norms.append(float(clip_grad_norm_(net.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    return net, norms


def assert_as_one_process(norms, net):
    want, expected = one_process()
    assert min(expected) > 1.0
    # The sum of two ranks' gradients is rounded otherwise than that of one.
    assert norms == pytest.approx(expected, rel=1e-5)
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, norms)
    assert all(other == norms for other in every)
    for a, b in zip(net.parameters(), want.parameters(), strict=True):
        a = a.full_tensor() if hasattr(a, "full_tensor") else a
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-6)


def lightning_runs():
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from gradclip.lightning import ClipGradients

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, i):
            return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    class Sharded(Model):
        def configure_model(self):
            for layer in (self.net[0], self.net[2], self.net):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    for model, strategy in (
        (Model(), DDPStrategy(process_group_backend="gloo")),
        (Sharded(), ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")),
    ):
        clip = ClipGradients(max_norm=1.0)
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy=strategy, callbacks=[clip], max_epochs=1, logger=False,
            use_distributed_sampler=False, **quiet,
        )  # fmt: skip
        trainer.fit(model, torch.utils.data.DataLoader(batches(2, dist.get_rank()), batch_size=None))
        assert trainer.world_size == 2
        assert isinstance(model.net[0].weight, DTensor) == isinstance(model, Sharded)
        assert_as_one_process(clip.histories[0].norms, model.net)


def transformers_runs():
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from transformers import Trainer, TrainingArguments

    from gradclip.transformers import ClipGradients

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels):
            return {"loss": torch.nn.functional.mse_loss(self.net(x), labels)}

    class Own(Trainer):
        def get_train_dataloader(self):
            rows = [{"x": x, "labels": y} for x, y in batches(2, dist.get_rank())]
            return torch.utils.data.DataLoader(rows, batch_size=None)

    for sharded in (False, True):
        model, clip = Model(), ClipGradients(max_norm=1.0)
        if sharded:
            fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder, use_cpu=True, ddp_backend="gloo", max_grad_norm=0, max_steps=STEPS, save_strategy="no",
                report_to="none", disable_tqdm=True, logging_steps=1,
            )  # fmt: skip
            trainer = Own(model, args, train_dataset=[0] * 16, optimizers=(optimizer, scheduler), callbacks=[clip])
            if sharded:  # Accelerate shards on GPUs alone: the model is sharded already, and is to be left as it is
                trainer.accelerator.prepare_model = lambda model, **_: model
            trainer.train()
        assert trainer.accelerator.num_processes == 2
        assert isinstance(model.net[0].weight, DTensor) == sharded
        assert_as_one_process(clip.history.norms, model.net)


def accelerate_runs():
    """The recipe, each rank with two of the four batches: the same norm as one process has, one step for all."""
    text = (SNIPPETS / "accelerate_global_norm.py").read_text()
    names = {"__name__": "recipe"}
    exec(text.replace("gradient_accumulation_steps=4", "gradient_accumulation_steps=2"), names)
    assert isinstance(names["model"], torch.nn.parallel.DistributedDataParallel)
    assert names["accelerator"].num_processes == 2
    assert float(names["norm"]) == 5.0
    torch.testing.assert_close(-names["model"].module.weight.detach().ravel(), torch.tensor([0.6, 0.8]))


def snippets_run():
    want = torch.tensor([[0.6], [0.8]])
    for name in ("torch_ddp", "torch_fsdp2", "torch_expert_parallel"):
        names = runpy.run_path(str(SNIPPETS / f"{name}.py"))
        assert float(names["norm"]) == pytest.approx(5.0, rel=1e-6), name
        weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in names["model"].parameters()]
        for weight, share in zip(weights, [1.0] if len(weights) == 1 else [0.6, 0.8], strict=True):
            torch.testing.assert_close(-weight.detach(), share * want)


RUNS = (lightning_runs, transformers_runs, accelerate_runs, snippets_run)


def on_each_rank(rank, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for run in RUNS:
        run()
    dist.destroy_process_group()


def test_two_ranks_clip_as_one_process_does():
    """One start of two processes for all of them, for most of the time goes into their imports."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    mp.spawn(on_each_rank, args=(port,), nprocs=2)
