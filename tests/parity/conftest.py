"""What the engine comparisons share: the instruction sets of this CPU."""

import pytest

from bitnet import _core


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", _core.supported_isas())
    if "checkpoint_name" in metafunc.fixturenames:
        metafunc.parametrize("checkpoint_name", ["packed_offline", "bf16_online"])


@pytest.fixture(scope="session")
def scalar() -> str:
    return "scalar"
