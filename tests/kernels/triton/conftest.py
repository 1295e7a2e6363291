"""The Triton kernels: on the GPU where there is one, else in Triton's interpreter, made faithful first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    from v32.kernels.triton_support.interpreter import interpret

    interpret()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The interpreter is slow: without a GPU only the first case of each test belongs to the fast tests."""
    seen = set()
    for item in items:
        if DEVICE == "cpu" and item.path.parent == Path(__file__).parent:
            function = (item.path, getattr(item, "originalname", item.name))
            if function in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(function)


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
