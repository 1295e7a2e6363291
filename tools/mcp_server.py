"""A toolset as an MCP server, so that other agents can use our tools (extra `mcp`).

python -m v32.tools.mcp_server --docs FOLDER     search, open_page and find on a folder, over stdio
"""

from __future__ import annotations

import argparse
import uuid
from typing import TYPE_CHECKING, Any

import anyio

from v32.tools.errors import ToolsError
from v32.tools.tool import ToolContext
from v32.tools.toolset import Toolset

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server


def mcp_server(tools: Toolset, name: str = "v32") -> Server[Any]:
    """An SDK server: `run` it over streams, or serve its `streamable_http_app()`.

    Arguments are validated and results pass the gate as everywhere; all calls of one server share one session.
    """
    import mcp_types as types
    from mcp.server.lowlevel import Server

    session_id = uuid.uuid4().hex

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        listed = [
            types.Tool(name=tool.name, description=tool.description, input_schema=dict(tool.parameters))
            for tool in tools
        ]
        return types.ListToolsResult(tools=listed)

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        output = await tools.run(params.name, params.arguments or {}, ToolContext(uuid.uuid4().hex, session_id))
        content: list[Any] = [types.TextContent(type="text", text=output.text)]
        return types.CallToolResult(content=content, is_error=output.is_error)

    return Server(name, on_list_tools=list_tools, on_call_tool=call_tool)


async def serve_stdio(tools: Toolset, name: str = "v32") -> None:
    """Serve until standard input ends; then what the tools hold is freed."""
    from mcp.server.stdio import stdio_server

    server = mcp_server(tools, name)
    try:
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
    finally:
        await tools.aclose()


def main() -> None:
    from v32.tools.local_index import LocalIndex
    from v32.tools.search import document_tools

    parser = argparse.ArgumentParser(prog="python -m v32.tools.mcp_server", description=__doc__)
    parser.add_argument("--docs", required=True, help="folder of .txt, .md and .jsonl files")
    try:
        index = LocalIndex.from_folder(parser.parse_args().docs)
    except ToolsError as error:
        parser.error(str(error))
    anyio.run(serve_stdio, Toolset(document_tools(index)))


if __name__ == "__main__":
    main()
