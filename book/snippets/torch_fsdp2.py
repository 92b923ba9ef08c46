"""PyTorch, FSDP2: gradients are DTensors, whose norm is that of the whole gradient. Run it with torchrun."""

import torch
import torch.distributed as dist

if not dist.is_initialized():
    dist.init_process_group("gloo")
model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
batches = [(torch.ones(1, 1), 2 * dist.get_rank() * torch.tensor([[3.0, 4.0]]))]  # the mean of both ranks is (3, 4)
# [start]
from torch.distributed.fsdp import fully_shard

from gradclip.torch import clip_grad_norm_

fully_shard(model, mesh=mesh)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
for x, y in batches:
    loss = (model(x) * y).sum()
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
# [end]
