"""PyTorch: micro-batches and a loss scale; with DDP, ranks exchange gradients in the last backward alone."""

import torch

model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
batches = [(torch.ones(1, 1), torch.tensor([[3.0, 4.0]]))]
micro_batches = 4
batches = [(x, 0.24 * y) for x, y in batches] * micro_batches
device = "cpu"
# [start]
from gradclip.torch import clip_grad_norm_

scaler = torch.amp.GradScaler(device)
for i, (x, y) in enumerate(batches):
    with torch.autocast(device, dtype=torch.float16):
        loss = (model(x) * y).sum() / micro_batches
    scaler.scale(loss).backward()
    if (i + 1) % micro_batches == 0:
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_(model.parameters(), max_norm=1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
# [end]
