"""Every test here needs the native library; where no compiler is, there is nothing to test."""

from __future__ import annotations

import pytest
import torch

from v32.kernels.native import library


@pytest.fixture(autouse=True, scope="session")
def _library() -> None:
    if library() is None:
        pytest.skip("no native kernels on this machine")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)
