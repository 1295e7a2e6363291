"""The MCP servers of a command: connected in one task, used in others, gone at the end."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from v32.agent.commands.servers import Servers
from v32.tools import ToolContext, ToolsError, Toolset

pytestmark = pytest.mark.skipif(find_spec("mcp") is None, reason="the extra `mcp` is not installed")
CONTEXT = ToolContext("call-1", "session-1")


def children() -> set[int]:
    """Processes whose parent we are."""
    me = os.getpid()
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(") ")[2].split()[1]) == me:
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_tools_of_a_server_are_used_from_other_tasks_and_the_server_ends_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The capital of Zubrovia is Lutz.")
    before = children()
    server = f"env PYTHONPATH={os.environ.get('PYTHONPATH', '')} {shlex.quote(sys.executable)} -m v32.tools.mcp_server"
    servers = Servers([f"{server} --docs {shlex.quote(str(tmp_path))}"])
    with asyncio.Runner() as loop:
        tools = Toolset(loop.run(servers.connect()))
        assert tools.names == ["search", "open_page", "find"]
        for _ in range(2):
            found = loop.run(tools.run("search", {"query": "capital"}, CONTEXT))
            assert found.text == "[a.txt] The capital of Zubrovia is Lutz."
        loop.run(servers.aclose())
    assert children() <= before


def test_a_server_that_cannot_be_used_is_told_and_closing_is_still_safe() -> None:
    servers = Servers(["/no/such/server"])
    with asyncio.Runner() as loop:
        with pytest.raises(ToolsError, match="cannot be used"):
            loop.run(servers.connect())
        loop.run(servers.aclose())
        none = Servers([])
        assert loop.run(none.connect()) == []
        loop.run(none.aclose())


@pytest.mark.slow
def test_giving_up_while_it_connects_ends_the_server() -> None:
    before = children()
    servers = Servers([f"{shlex.quote(sys.executable)} -c 'import time; time.sleep(600)'"])

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(servers.connect(), 1.0)
        await servers.aclose()

    asyncio.run(give_up())
    assert children() <= before
