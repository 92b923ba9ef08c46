"""Triton is imported before TensorFlow wherever PyTorch is there too, or the process ends: see the page Versions."""

import ast
import itertools
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import BOOK, ROOT, all_notebooks

PROTECTION = "with contextlib.suppress(ImportError):\n    import triton"
# TensorFlow 2.20 and 2.21 show what they bring to every library that comes later; others leave this module out.
CLASH = find_spec("triton") and (Path(find_spec("tensorflow").origin).parent / "python/pywrap_dlopen_global_flags.py")
needs_the_clash = pytest.mark.skipif(
    not (CLASH and CLASH.exists()), reason="needs Triton and a TensorFlow it clashes with"
)


def code_of(path):
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def imported(code, folder, seen=frozenset()):
    """The packages that code in this folder imports when it starts, in order, through this repository's modules too."""
    packages, todo = [], [*ast.parse(code).body]
    while todo:
        statement = todo.pop(0)
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            continue
        names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
        if isinstance(statement, ast.ImportFrom) and not statement.level:
            names = [statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)]
        for name in names:
            files = [place / f"{name.replace('.', '/')}.py" for place in (folder, ROOT)]
            if not (file := next(filter(Path.is_file, files), None)):
                packages.append(name.partition(".")[0])
            elif file not in seen:
                packages += imported(code_of(file), folder, seen | {file})
        todo[:0] = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
    return packages


def is_safe(packages):
    before_tensorflow = list(itertools.takewhile(lambda name: name not in ("tensorflow", "keras"), packages))
    return "torch" not in packages or before_tensorflow == packages or "triton" in before_tensorflow


@pytest.mark.parametrize(
    ("code", "safe"),
    [
        ("import tensorflow as tf\nimport torch", False),
        ("import torch\nimport tensorflow as tf", False),  # PyTorch imports Triton later
        ("import keras\nfrom torch import nn", False),
        ("import edge_cases\nimport torch", True),  # which does as the next line
        (f"{PROTECTION}\n\nimport keras\nimport torch", True),
        (f"import torch\n{PROTECTION}\nimport tensorflow", True),
        (f"import tensorflow\n{PROTECTION}\nimport torch", False),
        ("import gradclip.keras\nimport gradclip.torch", False),
        ("import ranks\nimport keras", False),  # book/gpu/ranks.py imports torch
        ("try:\n    import tensorflow\nexcept ImportError:\n    pass\nimport torch", False),
        ("import keras\nimport tensorflow", True),
        ("import jax\nimport torch", True),
    ],
)
def test_the_rule_tells_orders_apart(code, safe):
    folder = BOOK / ("gpu" if "ranks" in code else "frameworks")
    assert is_safe(imported(code, folder)) == safe


@pytest.mark.parametrize("path", [*all_notebooks(), *sorted(BOOK.rglob("*.py"))], ids=lambda path: path.name)
def test_every_page_imports_triton_in_time(path):
    assert is_safe(imported(code_of(path), path.parent)), f"add before TensorFlow and Keras:\n{PROTECTION}"


def run(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


BOTH = "import contextlib\n{}\nimport tensorflow\nimport torch\ntorch.optim.SGD([torch.zeros(1)])"


@needs_the_clash
def test_with_the_import_both_frameworks_live_in_one_process():
    got = run("-c", BOTH.format(PROTECTION))
    assert got.returncode == 0, got.stderr


@needs_the_clash
def test_without_the_import_they_do_not():
    got = run("-c", BOTH.format(""))
    assert got.returncode < 0, "TensorFlow and Triton get along: the import of Triton can go, here and on the pages"


@needs_the_clash
def test_tests_with_both_frameworks_survive():
    got = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/test_fold_into.py", "-k", "refused"
    )
    assert got.returncode == 0, got.stdout + got.stderr
    assert " passed" in got.stdout
