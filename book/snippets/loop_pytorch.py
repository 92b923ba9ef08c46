import torch

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batches = [(100 * torch.ones(8, 4), torch.zeros(8, 1))]
# ---
import gradclip.torch

for x, y in batches:
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    norm = gradclip.torch.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
