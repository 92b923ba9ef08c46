"""What the README shows is what happens."""

import base64
import doctest
import re
from pathlib import Path

import nbformat
import pytest
import torch

import gradclip
from tools.notebooks import BOOK

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
CALL, *EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example):
    test = doctest.DocTestParser().get_doctest(example, {}, "README.md", None, None)
    assert doctest.DocTestRunner().run(test).failed == 0


def test_there_is_an_example_for_each_framework():
    assert [re.search(r"import (\w+)", e).group(1) for e in EXAMPLES] == ["numpy", "torch", "tensorflow", "jax"]


def test_the_first_call_clips():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"model": model, "optimizer": optimizer, "loss": 100 * model(torch.ones(1, 2)).sum()}
    exec(CALL, names)
    assert names["norm"] > 100
    assert gradclip.global_norm([p.grad for p in model.parameters()]) <= 1 + 1e-6


def test_its_picture_is_the_one_of_the_front_page():
    cells = nbformat.read(BOOK / "intro.ipynb", as_version=4).cells
    drawn = [
        output.data["image/png"]
        for cell in cells
        for output in cell.get("outputs", [])
        if "data" in output and "image/png" in output.data
    ]
    same = base64.b64decode(drawn[0]) == (BOOK / "_static" / "run.png").read_bytes()
    assert same, "book/intro.ipynb has been executed again: write its first picture to book/_static/run.png"


def test_links_lead_somewhere():
    root = Path(__file__).parents[1]
    # Those to other hosts cannot be followed without a network.
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert links
    assert [link for link in links if not (root / link).exists()] == []
