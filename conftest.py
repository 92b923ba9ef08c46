"""What nbval needs to know about this book's notebooks; the tests' own fixtures are in tests/."""

import contextlib
import hashlib
import json
import os
import platform
from functools import partial
from pathlib import Path

from tools.notebooks import set_kernel_environment
from tools.outputs import settle

with contextlib.suppress(ImportError):
    import triton  # before TensorFlow: see book/reference/versions.md

set_kernel_environment()


def keep_what_jax_compiles():
    """Lets JAX find again what it compiled in an earlier run: a second run of the tests takes far less time.

    XLA compiles for the processor at hand, which JAX does not make part of its key: another one has another folder.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    instructions = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    folder = Path(__file__).parent / ".jax_cache" / hashlib.sha256(instructions.encode()).hexdigest()[:16]
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


keep_what_jax_compiles()


def pytest_collectstart(collector):
    # TensorFlow, XLA and progress bars write to stderr; our own warnings are errors already.
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)


def pytest_itemcollected(item):
    if hasattr(item, "compare_outputs") and "tolerance" in item.cell.metadata:
        item.compare_outputs = partial(compare_within_tolerance, item)


def pytest_collection_modifyitems(config, items):
    """Puts the notebooks that take longest first: both workers then end at about the same time."""
    recorded = json.loads((config.rootpath / "book" / "running_times.json").read_text())
    seconds = {name: entry["seconds"] for name, entry in recorded.items()}
    items.sort(key=lambda item: -seconds.get(item.nodeid.split("::")[0], 0))


def compare_within_tolerance(cell, new, stored, skip_compare=None):
    """Lets nbval compare all but the texts that are within the tolerance, and tells what is not."""
    try:
        new, found = settle(stored, new, cell.cell.metadata["tolerance"])
    except ValueError as error:
        cell.comparison_traceback = [str(error)]
        return False
    same = type(cell).compare_outputs(cell, new, stored, skip_compare)
    cell.comparison_traceback = found + cell.comparison_traceback
    return same
