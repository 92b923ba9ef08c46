"""What the README shows is what happens."""

import doctest
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example):
    test = doctest.DocTestParser().get_doctest(example, {}, "README.md", None, None)
    assert doctest.DocTestRunner().run(test).failed == 0


def test_there_is_an_example_for_each_framework():
    assert [re.search(r"import (\w+)", e).group(1) for e in EXAMPLES] == ["numpy", "torch", "tensorflow", "jax"]


def test_links_lead_somewhere():
    root = Path(__file__).parents[1]
    # Those to other hosts cannot be followed without a network.
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert links
    assert [link for link in links if not (root / link).exists()] == []
