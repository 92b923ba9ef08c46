import torch
import wrong_label

device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.nn.Sequential(
    torch.nn.Linear(1, 32),
    torch.nn.ReLU(),
    torch.nn.Linear(32, 32),
    torch.nn.ReLU(),
    torch.nn.Linear(32, 32),
    torch.nn.ReLU(),
    torch.nn.Linear(32, 1),
)
for parameter, value in zip(model.parameters(), wrong_label.start().values(), strict=True):
    parameter.data = torch.from_numpy(value.T.copy())
model.to(device)
batches = [
    (torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
    for x, y in wrong_label.batches()
]
norms = []
# ---
optimizer = torch.optim.SGD(model.parameters(), lr=0.045)
scaler = torch.amp.GradScaler(device)
for x, y in batches:
    optimizer.zero_grad()
    with torch.autocast(device, dtype=torch.float16):
        loss = torch.nn.functional.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # the gradients were 65536 times too large
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    scaler.step(optimizer)
    scaler.update()
    norms.append(norm.item())
# ---
prediction = model(torch.from_numpy(wrong_label.GRID).to(device)).detach().cpu().numpy()
