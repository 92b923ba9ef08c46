import torch
import wrong_label

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
batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in wrong_label.batches()]
norms = []
# ---
optimizer = torch.optim.SGD(model.parameters(), lr=0.045)
for x, y in batches:
    optimizer.zero_grad()
    for part in range(4):  # 8 examples at a time
        rows = slice(8 * part, 8 * part + 8)
        loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        (loss / 4).backward()  # adds to the gradients that are there
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    norms.append(norm.item())
# ---
prediction = model(torch.from_numpy(wrong_label.GRID)).detach().numpy()
