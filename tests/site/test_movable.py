"""Movable figures: moved, each says the numbers that its notebook computes."""

import importlib.util
import math
import re

import nbformat
import numpy as np

from tools.notebooks import ROOT


def function(page, name):
    """A function that a notebook defines, as it stands there."""
    cells = nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells
    (source,) = (c.source for c in cells if f"def {name}(" in c.source)
    body = re.search(rf"^def {name}\(.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)[0]
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, None))
    module.__dict__.update(math=math, np=np)
    exec(body, module.__dict__)
    return getattr(module, name)


def numbers(text):
    return [float(number.replace("−", "-")) for number in re.findall(r"[-−]?\d+(?:\.\d+)?", text)]


def test_the_spike_in_adam_moves_by_size_and_memory(visit):
    adam_steps = function("book/theory/adam-and-a-spike", "adam_steps")
    page = visit("book/theory/adam-and-a-spike.html")
    figure = page.locator("figure#adam-spike")
    size, memory = figure.locator("input[type=range]").all()
    seen = set()
    for slider, key in [(size, "Home"), (size, "End"), (memory, "Home"), (size, "ArrowLeft"), (memory, "End")]:
        slider.focus()
        page.keyboard.press(key)
        spike, beta2, first, backwards, half = numbers(figure.locator(".says").inner_text().replace("β₂", "β"))
        steps = adam_steps(spike, beta2=beta2)
        assert first == round(steps[0], 2)
        assert backwards == np.argmax(steps > 0)
        assert half == np.argmax(steps > 0.5)
        assert figure.locator("svg").get_attribute("aria-label").endswith(figure.locator(".says").inner_text())
        seen.add((spike, beta2))
    assert len(seen) == 5
    assert page.errors == []
