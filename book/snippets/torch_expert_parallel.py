"""PyTorch, expert parallel: gradients of several device meshes have one norm. Run it with torchrun."""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

if not dist.is_initialized():
    dist.init_process_group("gloo")
ranks = dist.get_world_size()
data, expert = (dist.init_device_mesh("cpu", (ranks,), mesh_dim_names=(name,)) for name in ("data", "expert"))
model = torch.nn.ModuleDict({name: torch.nn.Linear(1, 2, bias=False) for name in ("dense", "experts")})
for layer in model.values():
    torch.nn.init.zeros_(layer.weight)
fully_shard(model["dense"], mesh=data)
parallelize_module(model["experts"], expert, ColwiseParallel(output_layouts=Replicate()))
optimizer = torch.optim.SGD(model.parameters(), lr=1.0, foreach=False)  # PyTorch's foreach takes one mesh at a time
batches = [(torch.ones(1, 1), 1 * torch.tensor([[3.0, 4.0]]))]
# [start]
from gradclip.torch import clip_grad_norm_

for x, y in batches:
    loss = (model["dense"](x) * y).sum() * 0.6 + (model["experts"](x) * y).sum() * 0.8
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), max_norm=1.0)  # PyTorch's raises for two meshes
    optimizer.step()
    optimizer.zero_grad()
# [end]
