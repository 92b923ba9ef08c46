"""PyTorch: clip once, after the last micro-batch, what is divided by their number."""

import torch

model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
batches = [(torch.ones(1, 1), torch.tensor([[3.0, 4.0]]))]
micro_batches = 4
batches *= micro_batches
# [start]
from gradclip.torch import clip_grad_norm_

for i, (x, y) in enumerate(batches):
    loss = (model(x) * y).sum() / micro_batches
    loss.backward()
    if (i + 1) % micro_batches == 0:
        norm = clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
# [end]
