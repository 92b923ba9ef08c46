"""The recipe for Accelerate, as the book shows it: when gradients are synchronised, without the loss scale, once."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from gradclip.torch import clip_grad_norm_

TEXT = (Path(__file__).parents[1] / "book" / "snippets" / "accelerate_global_norm.py").read_text()
RECIPE = TEXT.split("# [start]\n")[1].split("# [end]\n")[0]

generator = torch.Generator().manual_seed(0)
DATA = [(torch.randn(3, generator=generator), 10 * torch.randn(2, generator=generator)) for _ in range(8)]


def network():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def loop(recipe, accumulate, scaler):
    """The network after a run of a recipe, and the norms that its clipping saw."""
    model, norms = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: norms.append(names["norm"].item()))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    loader = torch.utils.data.DataLoader(DATA, batch_size=1)
    accelerator.scaler = scaler  # by hand, for Accelerate has no fp16 on the CPU
    names = dict(zip(("model", "optimizer", "loader"), accelerator.prepare(model, optimizer, loader), strict=True))
    names["accelerator"] = accelerator
    with pytest.MonkeyPatch.context() as patch:
        if scaler:
            accelerator.native_amp = True
            patch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
        exec(recipe, names)
    return model, norms


def plain_loop(accumulate):
    model, norms = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for i, (x, y) in enumerate(DATA):
        ((model(x[None]) * y[None]).sum() / accumulate).backward()
        if (i + 1) % accumulate == 0:
            norms.append(clip_grad_norm_(model.parameters(), 1.0).item())
            optimizer.step()
            optimizer.zero_grad()
    return model, norms


def scale():
    return torch.amp.GradScaler("cpu", init_scale=2.0**10)


@pytest.mark.parametrize("scaler", [lambda: None, scale], ids=["float32", "scaled"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_recipe_is_the_plain_loop(accumulate, scaler):
    """Bit for bit, with a loss scale too, which is a power of two."""
    (model, norms), (want, expected) = loop(RECIPE, accumulate, scaler()), plain_loop(accumulate)
    assert norms == expected
    assert len(norms) == 8 // accumulate
    assert max(norms) > 1.0
    for a, b in zip(model.parameters(), want.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("line", "instead"),
    [("if accelerator.sync_gradients:", "if True:"), ("accelerator.unscale_gradients()", "pass")],
    ids=["sync_gradients", "unscale_gradients"],
)
def test_each_line_of_the_recipe_is_needed(line, instead):
    assert RECIPE.count(line) == 1
    scaler = scale() if "unscale" in line else None
    model, _ = loop(RECIPE.replace(line, instead), 4, scaler)
    want, _ = plain_loop(4)
    assert not torch.allclose(model.weight, want.weight, rtol=1e-2)
