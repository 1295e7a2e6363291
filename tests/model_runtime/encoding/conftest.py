"""The golden conversations of DeepSeek's own encoder."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "data" / "chat_golden.jsonl.xz"


@pytest.fixture(scope="session")
def golden() -> list[dict[str, Any]]:
    """2,000 generated conversations with the official output, or the official error."""
    with lzma.open(GOLDEN, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
