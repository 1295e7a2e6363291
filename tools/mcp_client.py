"""The tools of an MCP server as Tools, over stdio or streamable HTTP, through the official SDK (extra `mcp`).

    async with mcp_tools(["python", "server.py"]) as tools:
        agent = Agent(model, tools=tools)

Every request has a time limit; a server that dies or never answers is a failed call, not a hanging agent.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from v32.tools.errors import ToolsError
from v32.tools.gate import clean
from v32.tools.tool import Tool, ToolContext, ToolError, ToolOutput

if TYPE_CHECKING:
    from mcp import Client

MAX_LISTINGS = 100


@asynccontextmanager
async def mcp_tools(
    server: str | Sequence[str] | Any,
    *,
    timeout: float = 30.0,
    prefix: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> AsyncIterator[list[Tool]]:
    """The tools of a server for as long as the block lasts.

    `server` is a URL, a command with its arguments, or what the SDK's `Client` takes (a server object, a transport).
    A command sees `env` and the SDK's few safe variables, not the rest of this process's environment. `prefix` goes
    before each name, for servers whose tools are named alike. Raises `ToolsError` without the SDK, and where no
    connection comes about within `timeout`.
    """
    client_class, parameters, over_stdio = _sdk()
    named = server if isinstance(server, str) else repr(server)[:200]
    if not isinstance(server, str) and isinstance(server, Sequence):
        command, *arguments = server
        started = parameters(command=command, args=arguments, env=None if env is None else dict(env), cwd=cwd)
        server = over_stdio(started, errlog=_standard_error())
    failure: Exception | None = None  # raised below: on its way out, the SDK would put it into a group
    has_ended = False
    try:
        async with AsyncExitStack() as stack:
            try:
                client = await _connected(stack, partial(client_class, server, read_timeout_seconds=timeout))
                listed = await _listed(client)
            except Exception as error:
                failure = ToolsError(f"the MCP server {named} cannot be used: {_reason(error)}")
            else:
                try:
                    yield [McpTool(client, tool, prefix, timeout) for tool in listed]
                    has_ended = True
                except Exception as error:
                    failure = error
    except Exception as error:  # of a connection that broke; whoever called a tool since then has been told
        if failure is None and not has_ended:
            failure = ToolsError(f"the MCP server {named} broke the connection: {_reason(error)}")
    if failure is not None:
        raise failure


class McpTool:
    """One tool of a connected server."""

    def __init__(self, client: Client, listed: Any, prefix: str, timeout: float) -> None:
        self._client, self._remote_name = client, listed.name
        self.name = re.sub(r"[^A-Za-z0-9_-]", "_", prefix + listed.name)[:64]
        self.description: str = listed.description or ""
        self.parameters: Mapping[str, Any] = modern_schema({"type": "object", **listed.input_schema})
        self.timeout: float | None = timeout

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        from mcp.shared.exceptions import MCPError

        try:
            result = await self._client.call_tool(self._remote_name, dict(arguments))
        except MCPError as error:
            raise ToolError(f"{self.name}: {error}") from error
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream, OSError) as error:
            raise ToolError(f"{self.name}: the MCP server has ended; its tools cannot be used any more") from error
        except ValueError as error:
            raise ToolError(f"{self.name}: the MCP server answered with something that is no result") from error
        text = _text(result) or ("it failed without a word" if result.is_error else "done")
        if result.is_error and not text.startswith("Error"):
            text = f"Error: {text}"
        return ToolOutput(text, result.is_error, {"structured": result.structured_content})

    def __repr__(self) -> str:
        return f"<MCP tool {self.name}>"


def modern_schema(schema: Any) -> Any:
    """What servers write for older drafts, in the words of draft 2020-12."""
    if isinstance(schema, list):
        return [modern_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    modern = {key: modern_schema(value) for key, value in schema.items() if key != "$schema"}
    if isinstance(modern.get("items"), list):
        modern["prefixItems"] = modern.pop("items")
        if "additionalItems" in modern:
            modern["items"] = modern.pop("additionalItems")
    for limit in ("Minimum", "Maximum"):  # draft 4 had a flag beside the limit
        if isinstance(modern.get(f"exclusive{limit}"), bool):
            is_exclusive = modern.pop(f"exclusive{limit}")
            if is_exclusive and limit.lower() in modern:
                modern[f"exclusive{limit}"] = modern.pop(limit.lower())
    return modern


async def _connected(stack: AsyncExitStack, client: Callable[..., Client]) -> Client:
    """By the handshake that nearly every server knows, and by asking for versions where it is refused.

    Not the other way round: the SDK waits ten seconds for versions whatever the time limit, and a busy server that
    answers later than that then takes the handshake for the second one.
    """
    from mcp_types import METHOD_NOT_FOUND, UNSUPPORTED_PROTOCOL_VERSION

    try:
        return await stack.enter_async_context(client(mode="legacy"))
    except Exception as error:
        if getattr(_bottom(error), "code", None) not in (METHOD_NOT_FOUND, UNSUPPORTED_PROTOCOL_VERSION):
            raise
        return await stack.enter_async_context(client(mode="auto"))


async def _listed(client: Client) -> list[Any]:
    tools: list[Any] = []
    cursor: str | None = None
    for _ in range(MAX_LISTINGS):
        listing = await client.list_tools(cursor=cursor)
        tools += listing.tools
        cursor = listing.next_cursor
        if not cursor:
            break
    return tools


def _bottom(error: BaseException) -> BaseException:
    """What went wrong at the bottom of the SDK's task groups."""
    return _bottom(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _reason(error: BaseException) -> str:
    """In words for a terminal."""
    return clean(str(_bottom(error))) or type(_bottom(error)).__name__


def _text(result: Any) -> str:
    parts = [_block_text(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n".join(parts)


def _block_text(block: Any) -> str:
    """Text as it is; what is no text is named, so that the model knows of it."""
    if block.type == "text":
        return str(block.text)
    if block.type == "resource":
        text = getattr(block.resource, "text", None)
        return str(text) if text is not None else f"(data at {block.resource.uri})"
    if block.type == "resource_link":
        return f"(see {block.uri})"
    return f"({block.type}, {getattr(block, 'mime_type', 'unknown type')}, cannot be shown)"


def _sdk() -> tuple[Any, Any, Any]:
    try:
        from mcp import Client, StdioServerParameters, stdio_client
    except ImportError as error:
        raise ToolsError("MCP tools need the package mcp; install it with `pip install 'v32[mcp]'`") from error
    return Client, StdioServerParameters, stdio_client


def _standard_error() -> Any:
    """This process's, as a file a server can write to: what stands in `sys.stderr` may be none, as in a notebook."""
    for stream in (sys.stderr, sys.__stderr__):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.fileno()  # type: ignore[union-attr]
            return stream
    return subprocess.DEVNULL
