"""The Triton kernels: on the GPU where there is one, else in Triton's interpreter, made faithful first."""

from __future__ import annotations

import os
import sys

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    # Kernels are bound to the interpreter when they are decorated; nothing else of a CPU run imports Triton.
    assert "triton" not in sys.modules, "Triton was imported before its interpreter could be chosen"
    os.environ["TRITON_INTERPRET"] = "1"
    from v32.kernels.triton_support.interpreter import make_faithful

    make_faithful()


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
