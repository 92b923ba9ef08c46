"""PyTorch, DDP: after backward, each rank has the mean gradient; clip as on one device. Run it with torchrun."""

import torch
import torch.distributed as dist

if not dist.is_initialized():
    dist.init_process_group("gloo")
model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
batches = [(torch.ones(1, 1), 2 * dist.get_rank() * torch.tensor([[3.0, 4.0]]))]  # the mean of both ranks is (3, 4)
# [start]
from torch.nn.parallel import DistributedDataParallel

from gradclip.torch import clip_grad_norm_

model = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
for x, y in batches:
    loss = (model(x) * y).sum()
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
# [end]
