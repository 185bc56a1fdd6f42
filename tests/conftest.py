"""Fixtures every suite shares: the golden folder and its arrays."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """Small random models with Hugging Face's outputs; golden/README.md says how they were made."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_forward(golden):
    return np.load(golden / "forward.npz")
