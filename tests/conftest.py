"""Every contract test runs once per framework."""

import pytest
from systems import SYSTEMS


@pytest.fixture(params=SYSTEMS, ids=lambda system: system.name)
def system(request):
    with request.param.context():
        yield request.param


@pytest.fixture(params=[s for s in SYSTEMS if s.in_place], ids=lambda system: system.name)
def in_place_system(request):
    return request.param
