"""Lightning: a threshold that follows the norms, and is in the checkpoints."""

import torch
from lightning.pytorch import LightningModule

x, y = torch.ones(1, 1), torch.tensor([[3.0, 4.0]])


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 2, bias=False)
        torch.nn.init.zeros_(self.layer.weight)

    def training_step(self, batch, i):
        x, y = batch
        return (self.layer(x) * y).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


model, loader = Model(), torch.utils.data.DataLoader([(x, y)], batch_size=None)
options = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
options |= {"enable_progress_bar": False, "enable_model_summary": False}
# [start]
from lightning.pytorch import Trainer

from gradclip import thresholds
from gradclip.lightning import ClipGradients

clip = ClipGradients(thresholds.ZScore(z=2.5, warmup=25, cap=1.0))
trainer = Trainer(callbacks=[clip], **options)  # without gradient_clip_val
trainer.fit(model, loader)
# [end]
