"""Accelerate: clip each gradient by its own norm."""

import torch
from accelerate import Accelerator

model = torch.nn.Linear(1, 2, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
loader = torch.utils.data.DataLoader([(torch.ones(1), torch.tensor([3.0, 4.0]))] * 4, batch_size=1)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
# [start]
import gradclip

for x, y in loader:
    with accelerator.accumulate(model):
        loss = (model(x) * y).sum()
        accelerator.backward(loss)
        if accelerator.sync_gradients:  # the last of the accumulated batches
            accelerator.unscale_gradients()
            gradclip.clip_by_norm_([p.grad for p in model.parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad()
# [end]
