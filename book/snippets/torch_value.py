"""PyTorch: clip every element of the gradients."""

import torch

model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
batches = [(torch.ones(1, 1), torch.tensor([[3.0, 4.0]]))]
# [start]
from gradclip.torch import clip_grad_value_

for x, y in batches:
    loss = (model(x) * y).sum()
    loss.backward()
    clip_grad_value_(model.parameters(), clip_value=1.0)
    optimizer.step()
    optimizer.zero_grad()
# [end]
