"""PyTorch: with a loss scale, unscale, then clip, then step."""

import torch

model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
batches = [(torch.ones(1, 1), torch.tensor([[3.0, 4.0]]))]
batches = [(x, 0.24 * y) for x, y in batches]  # within float16, 65504 at most, when scaled by 65536
device = "cpu"
# [start]
from gradclip.torch import clip_grad_norm_

scaler = torch.amp.GradScaler(device)
for x, y in batches:
    with torch.autocast(device, dtype=torch.float16):
        loss = (model(x) * y).sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = clip_grad_norm_(model.parameters(), max_norm=1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
# [end]
