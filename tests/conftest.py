"""What every suite shares: the golden folder and its arrays, and hypothesis without its clock."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# a busy machine is no defect, so no example has a deadline
settings.register_profile("bitnet", deadline=None, print_blob=True)
settings.load_profile("bitnet")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Small random models with Hugging Face's outputs; golden/README.md says how they were made."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_forward(golden):
    return np.load(golden / "forward.npz")
