from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from v32.sandboxes import SandboxPolicy, SandboxUnavailable
from v32.tools import CodeSession, ToolContext, Toolset


@asynccontextmanager
async def code_tools(policy: SandboxPolicy) -> AsyncIterator[Toolset]:
    """`python`, `bash` and those of files, in a sandbox that works; where none does, the test is skipped."""
    session = CodeSession(policy)
    try:
        await session.sandbox("probe")
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox works here: {error}")  # no user namespaces: without one, code is not run at all
    tools = Toolset(session.tools(files=True))
    yield tools
    await tools.aclose()


@pytest.fixture
def context() -> ToolContext:
    return ToolContext("call-1", "session-1")
