from __future__ import annotations

import io
import json
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest

from v32.tools import ToolContext, ToolsError, Toolset, tool
from v32.tools.mcp_client import mcp_tools, modern_schema
from v32.tools.mcp_server import mcp_server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(find_spec("mcp") is None, reason="the extra `mcp` is not installed"),
]

SERVER = '''
import os, time
from mcp.server.mcpserver import MCPServer

server = MCPServer("test")

@server.tool()
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b

@server.tool(name="odd.name")
def odd() -> str:
    return "odd \\x1b[31mtext"

@server.tool()
def fail() -> str:
    raise ValueError("no such thing")

@server.tool()
def die() -> str:
    os._exit(3)

@server.tool()
def hang() -> str:
    time.sleep(600)
    return ""

@server.tool()
def environment() -> str:
    return os.environ.get("V32_SECRET", "unset")

server.run()
'''


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "server.py").write_text(SERVER)
    return [sys.executable, str(tmp_path / "server.py")]


@pytest.mark.slow
async def test_tools_of_a_real_server_over_stdio(
    command: list[str], context: ToolContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("V32_SECRET", "secret")
    async with mcp_tools(command, prefix="t_") as listed:
        tools = Toolset(listed)
        assert tools.names == ["t_add", "t_odd_name", "t_fail", "t_die", "t_hang", "t_environment"]
        assert tools["t_add"].description == "Add two numbers."
        assert (await tools.run("t_add", {"a": 2}, context)).text == "3"
        assert (await tools.run("t_odd_name", {}, context)).text == "odd text"
        failed = await tools.run("t_fail", {}, context)
        assert failed.is_error
        assert failed.text.startswith("Error")
        assert "$.a: expected integer" in (await tools.run("t_add", {"a": "x"}, context)).text
        assert (await tools.run("t_environment", {}, context)).text == "unset"


@pytest.mark.slow
async def test_a_server_starts_where_standard_error_is_no_file(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    async with mcp_tools(command) as tools:
        assert tools


@pytest.mark.slow
async def test_a_server_that_hangs_or_dies_is_a_failed_call(command: list[str], context: ToolContext) -> None:
    async with mcp_tools(command, timeout=8.0) as listed:
        tools = Toolset(listed)
        tools["hang"].timeout = 0.5  # type: ignore[misc]
        assert (await tools.run("hang", {}, context)).text == "Error: hang took longer than 0.5 s and was stopped"
        with anyio.fail_after(30):
            died = await tools.run("die", {}, context)
            again = await tools.run("add", {"a": 1}, context)
        assert died.is_error
        assert again.is_error
        assert died.text.startswith("Error: ")


# Speaks just enough of the protocol by hand to break it.
ODD_SERVER = """
import json, sys, time
mode = sys.argv[1]
def say(**message): print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **message}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["method"] == "initialize":
        print("noise\\n{not json\\n[]", flush=True)
        about = {"capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": ""}}
        say(result={"protocolVersion": asked["params"]["protocolVersion"], **about})
    elif asked["method"] == "tools/list" and mode != "lists nothing":
        say(result={"tools": [{"name": "t", "inputSchema": {"type": "object"}}]})
    elif asked["method"] == "tools/call" and mode == "no result":
        say(result={"content": "x"})
    elif asked["method"] == "tools/call" and mode == "closes":
        sys.exit()
    elif asked["method"] == "tools/call" and mode == "noise":
        print("noise", flush=True)
    elif asked["method"] == "tools/call" and mode == "no text":
        sys.stdout.buffer.write(bytes([255, 10]))
        sys.stdout.flush()
    elif asked["method"] == "tools/call" and mode == "fails silently":
        say(result={"content": [], "isError": True})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("no result", "Error: t: the MCP server answered with something that is no result"),
        ("closes", "Error: t: Connection closed"),
        ("noise", "Error: t took longer than 2 s and was stopped"),
        ("no text", "Error: t took longer than 2 s and was stopped"),
        ("fails silently", "Error: it failed without a word"),
    ],
)
async def test_a_server_that_breaks_the_protocol_is_a_failed_call(
    tmp_path: Path, context: ToolContext, mode: str, text: str
) -> None:
    (tmp_path / "odd.py").write_text(ODD_SERVER)
    with anyio.fail_after(30):
        async with mcp_tools([sys.executable, str(tmp_path / "odd.py"), mode], timeout=2.0) as listed:
            assert (await Toolset(listed).run("t", {}, context)).text == text


@pytest.mark.slow
async def test_a_server_without_a_list_is_no_server_and_what_the_block_raises_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD_SERVER)
    with anyio.fail_after(30), pytest.raises(ToolsError, match=r"cannot be used: .*timed out"):
        async with mcp_tools([sys.executable, str(tmp_path / "odd.py"), "lists nothing"], timeout=2.0):
            pass
    with pytest.raises(KeyError, match="ours"):
        async with mcp_tools([sys.executable, str(tmp_path / "odd.py"), ""]):
            raise KeyError("ours")


@pytest.mark.slow
@pytest.mark.parametrize(
    "server",
    [[sys.executable, "-c", "import time; time.sleep(600)"], ["/no/such/program"], "http://127.0.0.1:1/mcp"],
    ids=["silent", "absent", "unreachable"],
)
async def test_what_is_no_server_is_an_error_in_time(server: Any) -> None:
    with anyio.fail_after(30), pytest.raises(ToolsError, match=r"^the MCP server .* cannot be used: (?!unhandled)"):
        async with mcp_tools(server, timeout=1.0):
            pass


async def test_a_url_where_nobody_answers_is_an_error_at_the_timeout() -> None:
    import mcp  # noqa: F401 (its import is no part of what is timed)

    mute = socket.create_server(("127.0.0.1", 0))
    with mute, anyio.fail_after(8), pytest.raises(ToolsError, match="timed out"):
        async with mcp_tools(f"http://127.0.0.1:{mute.getsockname()[1]}/mcp", timeout=0.5):
            pass


async def test_our_tools_served_and_used_again(context: ToolContext) -> None:
    @tool
    async def greet(name: str) -> str:
        """Greet someone.

        Args:
            name: Whom.
        """
        return f"Hello {name}"

    ours = Toolset([greet])
    async with mcp_tools(mcp_server(ours)) as listed:
        tools = Toolset(listed)
        assert [(t.name, t.description, dict(t.parameters)) for t in tools] == [
            (t.name, t.description, dict(t.parameters)) for t in ours
        ]
        assert (await tools.run("greet", {"name": "you"}, context)).text == "Hello you"


@pytest.mark.slow
async def test_the_served_folder_answers_another_process(tmp_path: Path, context: ToolContext) -> None:
    (tmp_path / "a.txt").write_text("The capital of Zubrovia is Lutz.")
    async with mcp_tools(
        [sys.executable, "-m", "v32.tools.mcp_server", "--docs", str(tmp_path)], env=_path()
    ) as listed:
        tools = Toolset(listed)
        found = await tools.run("search", {"query": "capital"}, context)
        assert found.text == "[a.txt] The capital of Zubrovia is Lutz."
        assert (await tools.run("open_page", {"id": "b.txt"}, context)).text.endswith("did you mean 'a.txt'?")


def without_handshake(app: Any) -> Any:
    """A server of the newest protocol alone, which refuses `initialize`."""
    refusal = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32022, "message": "no", "data": {"supported": []}}}

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        read = [await receive()]
        call = json.loads(read[0].get("body") or "{}")
        if call.get("method") == "initialize":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps({**refusal, "id": call["id"]}).encode()})
            return

        async def receive_again() -> Any:
            return read.pop() if read else await receive()

        await app(scope, receive_again, send)

    return serve


@pytest.mark.slow
@pytest.mark.parametrize("served", [lambda app: app, without_handshake], ids=["both", "newest protocol only"])
async def test_over_streamable_http(context: ToolContext, served: Callable[[Any], Any]) -> None:
    import uvicorn

    @tool
    async def double(n: int) -> int:
        return 2 * n

    config = uvicorn.Config(served(mcp_server(Toolset([double])).streamable_http_app()), port=0, log_level="error")
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        while not server.started:
            await anyio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with mcp_tools(f"http://127.0.0.1:{port}/mcp") as listed:
            assert (await Toolset(listed).run("double", {"n": 4}, context)).text == "8"
        server.should_exit = True


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}, {"type": "object"}),
        (
            {"items": [{"type": "string"}], "additionalItems": False},
            {"prefixItems": [{"type": "string"}], "items": False},
        ),
        ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        ({"maximum": 1, "exclusiveMaximum": False}, {"maximum": 1}),
        ({"properties": {"a": {"items": [{}]}}}, {"properties": {"a": {"prefixItems": [{}]}}}),
        (True, True),
    ],
)
def test_schemas_of_older_drafts(old: Any, new: Any) -> None:
    assert modern_schema(old) == new


def _path() -> dict[str, str]:
    import os

    return {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
