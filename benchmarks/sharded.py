"""DTensor gradients on two processes of one machine: ``clip_grad_norm_`` of gradclip beside PyTorch's."""

import os
import tempfile
from functools import partial
from itertools import accumulate, repeat
from operator import mul
from typing import Any

from .shapes import SHAPES
from .timing import MOST, Row, compare, wall_time


def measure(name: str, ranks: int) -> list[Row]:
    """The first call, later ones, and how many exchanges each needs. Every array is cut along its first axis."""
    import torch.multiprocessing as mp

    # Gloo asks which address the machine's name has, and not every machine knows.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as meeting_place:
        context = mp.get_context("spawn")
        rows: Any = context.SimpleQueue()
        mp.spawn(_rank, args=(ranks, name, meeting_place, rows), nprocs=ranks)
        listed: list[Row] = rows.get()
    return listed


def _rank(rank: int, ranks: int, name: str, meeting_place: str, rows: Any) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.debug import CommDebugMode

    import gradclip.torch

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}/meet", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    torch.manual_seed(rank)
    params = []
    for first, *rest in SHAPES[name]:
        part = torch.randn(first // ranks, *rest)
        params.append(torch.nn.Parameter(DTensor.from_local(torch.zeros_like(part), mesh, [Shard(0)], run_check=False)))
        params[-1].grad = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
    clips = {"gradclip": gradclip.torch.clip_grad_norm_, "own": torch.nn.utils.clip_grad_norm_}

    def together(call: Any) -> float:
        dist.barrier()
        return wall_time(call)

    about = {"framework": "torch", "set": name, "ranks": ranks}
    listed: list[Row] = []
    # What both need and only a first call does is paid by gradclip, which is the first of the two.
    for who, clip in clips.items():
        seconds = together(partial(clip, params, 1e9))
        with CommDebugMode() as exchanges:
            norm = float(clip(params, 1e9).full_tensor())
        count = exchanges.get_total_counts()
        listed.append({**about, "case": "first call", "who": who, "median": seconds, "exchanges": count})
    shrinking = accumulate(repeat(0.99), mul, initial=0.99 * norm)  # as in benchmarks.measure
    for case, c in (("unclipped", repeat(2 * norm)), ("clipped", shrinking)):
        calls = {who: lambda clip=clip, c=c: clip(params, next(c)) for who, clip in clips.items()}
        # All ranks must call equally often: the most rounds leave nothing for a clock to decide.
        listed += [{**about, "case": case, **row} for row in compare(calls, MOST, together)]
    if rank == 0:
        rows.put(listed)
    dist.barrier()
    dist.destroy_process_group()
