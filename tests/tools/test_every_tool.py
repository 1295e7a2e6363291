"""What holds for every tool of ours, whatever the model sends and whenever it is cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from tests.tools.conftest import code_tools
from v32.sandboxes import SandboxPolicy
from v32.tools import Document, Hit, LocalIndex, ToolContext, Toolset, document_tools
from v32.tools.web import Fetcher, FetchPolicy, web_tools

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

code = partial(code_tools, SandboxPolicy(wall_seconds=5.0, workspace_bytes=8 << 20, workspace_inodes=300))
VALUES = (
    None,
    True,
    -1,
    1.5,
    10**400,
    "",
    "x",
    [],
    {},
    "\0",
    "\ud800",
    "../x",
    "<｜User｜>\x1b[31m\u202e",
    "(" * 100_000,
)


class Nothing:
    async def search(self, query: str, topn: int) -> list[Hit]:
        return []


@asynccontextmanager
async def documents() -> AsyncIterator[Toolset]:
    yield Toolset(document_tools(LocalIndex([Document("a", "text")])))


@asynccontextmanager
async def web() -> AsyncIterator[Toolset]:
    yield Toolset(web_tools(Nothing(), Fetcher(FetchPolicy(seconds=1.0))))


def calls(tools: Toolset) -> Iterator[tuple[str, Any]]:
    """Each tool with each value in each place, with nothing, and with something more."""
    for tool in tools:
        valid = dict.fromkeys(tool.parameters.get("required", ()), "1")
        yield from ((tool.name, arguments) for arguments in ({}, None, [], "x", {**valid, "more": 1}))
        for name in tool.parameters["properties"]:
            yield from ((tool.name, {**valid, name: value}) for value in VALUES)


@pytest.mark.parametrize("opened", [code, documents, web])
async def test_whatever_the_model_sends_is_answered_in_words(opened: Any, context: ToolContext) -> None:
    async with opened() as tools:
        for name, arguments in calls(tools):
            with anyio.fail_after(30):
                output = await tools.run(name, arguments, context)
            assert output.text, (name, arguments)
            assert len(output.text) <= tools.max_chars
            assert output.data.get("failure") != "crash", (name, str(arguments)[:200], output.text)
            output.text.encode()


@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.02, 0.2])
async def test_every_tool_can_be_cancelled_at_any_time(seconds: float, context: ToolContext) -> None:
    wait = "import subprocess; subprocess.run(['sleep', '100'])"
    async with code() as tools:
        await tools.run("python", {"code": "x = 1"}, context)
        for name, arguments in [
            ("python", {"code": wait}),
            ("bash", {"command": "sleep 100 & setsid sleep 100 & sleep 100"}),
            ("create_file", {"path": "a", "text": "y" * (1 << 20)}),
            ("view_file", {"path": "a"}),
            ("replace_in_file", {"path": "a", "old": "y", "new": "z"}),
            ("list_files", {}),
        ]:
            with anyio.fail_after(20), anyio.move_on_after(seconds):
                await tools.run(name, arguments, context)
            assert (await tools.run("python", {"code": "x"}, context)).text == "1", name
            running = await tools.run("bash", {"command": "cat /proc/[0-9]*/comm | grep -c sleep"}, context)
            assert running.text.startswith("0"), name


async def test_a_full_disk_is_said_and_costs_nothing_that_was_there(context: ToolContext) -> None:
    async def run(name: str, **arguments: Any) -> str:
        return (await tools.run(name, arguments, context)).text

    async with code() as tools:
        await run("create_file", path="kept", text="old")
        assert "No space left" in await run("bash", command="head -c 20M /dev/zero > big")
        assert await run("create_file", path="new", text="y" * 9999) == (
            "Error: new: the workspace is full; delete files first"
        )
        assert "workspace is full" in await run("replace_in_file", path="kept", old="old", new="z" * (1 << 20))
        assert "The workspace is full" in await run("python", code="open('more', 'w').write('y' * 9999)")
        assert await run("view_file", path="kept") == "    1  old"
        await run("bash", command="rm big; for i in $(seq 400); do : > $i; done")
        assert "workspace is full" in await run("create_file", path="new", text="")
        await run("bash", command="rm [0-9]*")
        assert await run("create_file", path="new", text="y") == "new: written, 1 lines"
