from __future__ import annotations

import pytest

from v32.tools import ToolContext


@pytest.fixture
def context() -> ToolContext:
    return ToolContext("call-1", "session-1")
