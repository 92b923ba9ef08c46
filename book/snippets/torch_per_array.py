"""PyTorch: clip each gradient by its own norm."""

import torch

model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
batches = [(torch.ones(1, 1), torch.tensor([[3.0, 4.0]]))]
# [start]
import gradclip

for x, y in batches:
    loss = (model(x) * y).sum()
    loss.backward()
    gradclip.clip_by_norm_([p.grad for p in model.parameters()], 1.0)
    optimizer.step()
    optimizer.zero_grad()
# [end]
