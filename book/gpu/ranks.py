"""Four processes that train together, for the page on many devices: each case runs on every rank and tells what it saw.

A case is a function of this file. `run` starts the processes, on this machine and without a network, and returns for
each case one dictionary per rank.
"""

import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing as mp
from torch import nn

import gradclip

RANKS = 4
C = 1.0  # the threshold

Answers = dict[str, Any]


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def batch() -> torch.Tensor:
    """64 examples, 16 a rank; one of the last rank's is forty times too large."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    x[60] *= 40
    return x


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = model(x)
    return (out - x[:, :4]).square().sum(dim=1).mean()


def mine(x: torch.Tensor) -> torch.Tensor:
    return x.chunk(RANKS)[dist.get_rank()]


def grads(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def joined(arrays: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([whole(a).flatten() for a in arrays])


def whole(x: Any) -> torch.Tensor:
    full: torch.Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return full


def degrees_between(a: torch.Tensor, b: torch.Tensor) -> float:
    cosine = torch.dot(a.double(), b.double()) / (a.double().norm() * b.double().norm())
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))


def whole_gradient() -> list[torch.Tensor]:
    """What one process computes from the whole batch."""
    model = make_model()
    loss_of(model, batch()).backward()
    return grads(model)


# What a rank's array is -----------------------------------------------------------------------------------------------


def copies() -> Answers:
    """DDP: backward takes the mean over the ranks, and each has a copy."""
    model = nn.parallel.DistributedDataParallel(make_model())
    loss_of(model, mine(batch())).backward()
    norm = gradclip.clip_by_global_norm_(grads(model), C)
    after = gradclip.global_norm(grads(model))
    return {"norm": float(norm), "after": float(after)}


def pieces() -> Answers:
    """FSDP2: each rank has some rows of each gradient."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.debug import CommDebugMode

    model = make_model()
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=_line())
    loss_of(model, mine(batch())).backward()
    with CommDebugMode() as theirs:
        torch_norm = whole(nn.utils.get_total_norm(grads(model)))
    with CommDebugMode() as ours:
        norm = gradclip.clip_by_global_norm_(grads(model), C)
    after = joined(grads(model))
    return {
        "norm": float(norm),
        "after": float(after.norm()),
        "turned": degrees_between(after, joined(whole_gradient())),
        "torch": float(torch_norm),
        "exchanges": [theirs.get_total_counts(), ours.get_total_counts()],
    }


def pieces_by_their_own_norm() -> Answers:
    """Wrong: the same, but each rank measures and clips what it holds."""
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=_line())
    loss_of(model, mine(batch())).backward()
    local = [g.to_local() for g in grads(model)]  # type: ignore[attr-defined]
    norm = gradclip.clip_by_global_norm_(local, C)
    after = joined(grads(model))
    return {
        "norm": float(norm),
        "after": float(after.norm()),
        "turned": degrees_between(after, joined(whole_gradient())),
    }


def summands() -> Answers:
    """Wrong: each rank clips the gradient of its part of the batch, and then they take the mean."""
    model = make_model()
    loss_of(model, mine(batch())).backward()
    norm = gradclip.clip_by_global_norm_(grads(model), C)
    for g in grads(model):
        dist.all_reduce(g)
        g /= RANKS
    after = joined(grads(model))
    return {
        "norm": float(norm),
        "after": float(after.norm()),
        "turned": degrees_between(after, joined(whole_gradient())),
    }


def stages() -> Answers:
    """A pipeline: each rank has other layers; one number is exchanged."""
    layers = [g.clone() for g in whole_gradient()]
    own = [layers[dist.get_rank()]]  # as many arrays as ranks
    squares = gradclip.global_norm(own).double().square()
    dist.all_reduce(squares)
    gradclip.clip_by_global_norm_(own, C, norm=squares.sqrt())
    left = gradclip.global_norm(own).double().square()
    dist.all_reduce(left)
    return {"norm": float(squares.sqrt()), "after": float(left.sqrt())}


CASES: dict[str, Callable[[], Answers]] = {
    case.__name__: case for case in (copies, pieces, pieces_by_their_own_norm, summands, stages)
}


# The processes --------------------------------------------------------------------------------------------------------


def _line() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (RANKS,))


def run(*names: str) -> dict[str, list[Answers]]:
    """For each case, what each rank answered, in the order of the ranks; all cases in one start of the processes."""
    with tempfile.TemporaryDirectory() as meeting_place, _quiet():
        # One process imports, and is forked: four would import PyTorch four times.
        multiprocessing.set_forkserver_preload(["gradclip", "torch.distributed.fsdp", "torch.distributed.tensor"])
        mp.start_processes(  # type: ignore[attr-defined, no-untyped-call]
            _rank, args=(meeting_place, names), nprocs=RANKS, start_method="forkserver"
        )
        by_rank = [json.loads(Path(meeting_place, f"{rank}.json").read_text()) for rank in range(RANKS)]
    return {name: [answers[name] for answers in by_rank] for name in names}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the children inherit: one thread each, since four share this machine, and loopback as the network."""
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _rank(rank: int, meeting_place: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}/meet", rank=rank, world_size=RANKS)
    try:
        answers = {name: CASES[name]() for name in names}
        Path(meeting_place, f"{rank}.json").write_text(json.dumps(answers))
        dist.barrier()
    finally:
        dist.destroy_process_group()
