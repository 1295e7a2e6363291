"""The MCP servers of `--mcp`, connected for as long as a command runs: what was given in, their tools out.

One task connects and hangs up, for what the SDK opens must be closed by the task that opened it; a chat's turns are
tasks of their own.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from v32.agent.commands.errors import UsageError

if TYPE_CHECKING:
    from v32.tools.tool import Tool


class Servers:
    """`await connect()` once, then `await aclose()`; both from any task of one event loop."""

    def __init__(self, given: Sequence[str]) -> None:
        self._places = [_place(text) for text in given]
        self._hang_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> list[Tool]:
        """The tools of all servers, in order. Raises `ToolsError` for one that cannot be used."""
        if not self._places:
            return []
        connected: asyncio.Future[list[Tool]] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(connected))
        try:
            return await connected
        except BaseException:
            self._task.cancel()
            raise

    async def aclose(self) -> None:
        self._hang_up.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _hold(self, connected: asyncio.Future[list[Tool]]) -> None:
        from v32.tools.errors import ToolsError
        from v32.tools.mcp_client import mcp_tools

        async with AsyncExitStack() as stack:
            tools: list[Tool] = []
            for place in self._places:
                try:
                    tools += await stack.enter_async_context(mcp_tools(place))
                except ToolsError as error:
                    connected.set_exception(error)
                    return
            connected.set_result(tools)
            await self._hang_up.wait()


def _place(text: str) -> str | list[str]:
    """A URL as it is, anything else as the words of a command."""
    if text.startswith(("http://", "https://")):
        return text
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--mcp: {text!r} cannot be read as a command: {error}") from error
    if not words:
        raise UsageError("--mcp: a command or a URL is missing, such as --mcp 'npx -y SERVER' or --mcp http://HOST/mcp")
    return words
