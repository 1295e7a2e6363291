"""The Triton kernels: on the GPU where there is one, else in Triton's interpreter, made faithful first."""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    from v32.kernels.triton_support.interpreter import interpret

    interpret()


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
