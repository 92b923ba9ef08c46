"""What nbval needs to know about this book's notebooks; the tests' own fixtures are in tests/."""

import contextlib

from tools.notebooks import set_kernel_environment

with contextlib.suppress(ImportError):
    import triton  # before TensorFlow: see book/reference/versions.md

set_kernel_environment()


def pytest_collectstart(collector):
    # TensorFlow, XLA and progress bars write to stderr; our own warnings are errors already.
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
