"""Models to evaluate: a random one that takes ids, and the embedded one that reads text."""

import pytest

from bitnet.load import load_model


@pytest.fixture(scope="session")
def ids_model(golden):
    return load_model(golden / "packed_offline", threads=1)


@pytest.fixture(scope="session")
def stories():
    return load_model(threads=1)
