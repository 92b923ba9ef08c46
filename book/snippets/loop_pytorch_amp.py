import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.nn.Linear(4, 1, device=device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler(device)
x = 10 * torch.ones(8, 4, device=device)
batches = [(x, torch.zeros(8, 1, device=device))] * 20
# ---
import gradclip.torch

for x, y in batches:
    optimizer.zero_grad()
    with torch.autocast(device, torch.float16):
        loss = torch.nn.functional.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = gradclip.torch.clip_grad_norm_(model.parameters(), max_norm=1.0)
    scaler.step(optimizer)
    scaler.update()
