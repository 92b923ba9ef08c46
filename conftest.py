"""What nbval needs to know about this book's notebooks; the tests' own fixtures are in tests/."""

from tools.notebooks import set_kernel_environment

set_kernel_environment()


def pytest_collectstart(collector):
    # TensorFlow, XLA and progress bars write to stderr; our own warnings are errors already.
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
