"""PyTorch: a threshold that follows the norms."""

import torch

model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
batches = [(torch.ones(1, 1), torch.tensor([[3.0, 4.0]]))]
# [start]
from gradclip import thresholds
from gradclip.torch import clip_grads_with_norm_, get_total_norm

threshold = thresholds.ZScore(z=2.5, warmup=25, cap=1.0)
for x, y in batches:
    loss = (model(x) * y).sum()
    loss.backward()
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    clip_grads_with_norm_(model.parameters(), threshold.update(norm), norm)
    optimizer.step()
    optimizer.zero_grad()
checkpoint = {"threshold": threshold.state_dict()}  # beside those of the model and the optimizer
# [end]
