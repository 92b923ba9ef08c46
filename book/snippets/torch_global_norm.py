"""PyTorch: clip all gradients by their joint norm."""

import torch

model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
batches = [(torch.ones(1, 1), torch.tensor([[3.0, 4.0]]))]
# [start]
from gradclip.torch import clip_grad_norm_

for x, y in batches:
    loss = (model(x) * y).sum()
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
# [end]
