"""Every contract test runs once per framework."""

import pytest
import torch
from systems import SYSTEMS

# What takes longest by itself, longest first: begun last, one of them would keep one worker busy and the other waiting.
LONG = (
    "test_other_backends",
    "test_rule_16",
    "test_sharded.py",
    "test_triton",
    "test_rule_15_empty_arrays",
    "test_tracing.py",
    "test_main.py",
)


@pytest.fixture(params=SYSTEMS, ids=lambda system: system.name)
def system(request):
    with request.param.context():
        yield request.param


@pytest.fixture(params=[s for s in SYSTEMS if s.in_place], ids=lambda system: system.name)
def in_place_system(request):
    return request.param


def pytest_collection_modifyitems(config, items):
    """Leaves out what needs a GPU where there is none, and puts first what takes long."""
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    items.sort(key=lambda item: next((i for i, part in enumerate(LONG) if part in item.nodeid), len(LONG)))
