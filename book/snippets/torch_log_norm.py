"""PyTorch: log the norm before clipping, and how often it clips."""

import torch

model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
batches = [(torch.ones(1, 1), torch.tensor([[3.0, 4.0]]))]
# [start]
from gradclip import NormHistory
from gradclip.torch import clip_grad_norm_

history = NormHistory()
for x, y in batches:
    loss = (model(x) * y).sum()
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), max_norm=1.0)
    history.record(norm, max_norm=1.0)  # reads the norm: on a GPU, this waits for it
    optimizer.step()
    optimizer.zero_grad()
print(history.summary())
# [end]
