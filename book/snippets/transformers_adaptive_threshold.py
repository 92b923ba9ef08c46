"""transformers: a threshold that follows the norms, and is in the checkpoints."""

import tempfile

import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 2, bias=False)
        torch.nn.init.zeros_(self.layer.weight)

    def forward(self, x, labels):
        return {"loss": (self.layer(x) * labels).sum()}


model, data = Model(), [{"x": torch.ones(1), "labels": torch.tensor([3.0, 4.0])}]
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
optimizers = optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
options = {"output_dir": tempfile.mkdtemp(), "max_steps": 1, "use_cpu": True, "save_strategy": "no"}
options |= {"per_device_train_batch_size": 1, "report_to": "none", "logging_steps": 1, "disable_tqdm": True}
# [start]
from transformers import Trainer, TrainingArguments

from gradclip import thresholds
from gradclip.transformers import ClipGradients

clip = ClipGradients(thresholds.ZScore(z=2.5, warmup=25, cap=1.0))
arguments = TrainingArguments(max_grad_norm=0, **options)  # by default the Trainer clips at 1
trainer = Trainer(model, arguments, train_dataset=data, optimizers=optimizers, callbacks=[clip])
trainer.train()
# [end]
