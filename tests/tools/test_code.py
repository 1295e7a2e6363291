from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from tests.tools.conftest import code_tools
from v32.sandboxes import CellResult, ExecResult, SandboxClosed, SandboxPolicy, SandboxUnavailable, start_sandbox
from v32.tools import CodeSession, ToolContext, ToolOutput, Toolset, python_tool
from v32.tools.code import cell_output, command_output, error_text

pytestmark = pytest.mark.anyio

NESTED = """Traceback (most recent call last):
  File "<cell 2>", line 2, in <module>
    half(0)
  File "<cell 1>", line 3, in half
    return 1 / n
           ~~^~~
ZeroDivisionError: division by zero"""
SYNTAX = """  File "<cell 1>", line 2
    x = = 1
        ^
SyntaxError: invalid syntax"""
LIBRARY = """Traceback (most recent call last):
  File "<cell 1>", line 2, in <module>
    json.loads("{")
  File "/usr/lib/python3.11/json/__init__.py", line 346, in loads
    return _default_decoder.decode(s)
json.decoder.JSONDecodeError: Expecting property name"""
CHAINED = """Traceback (most recent call last):
  File "<cell 1>", line 2, in <module>
    int("x")
ValueError: invalid literal

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "<cell 1>", line 4, in <module>
    raise KeyError("y")
KeyError: 'y'"""


@pytest.mark.parametrize(
    ("traceback", "short", "with_lines"),
    [
        (NESTED, "Error: ZeroDivisionError: division by zero", "\n  line 2: half(0)\n  line 3, in half: return 1 / n"),
        (SYNTAX, "Error: SyntaxError: invalid syntax", "\n  line 2: x = = 1"),
        (LIBRARY, "Error: json.decoder.JSONDecodeError: Expecting property name", '\n  line 2: json.loads("{")'),
        (CHAINED, "Error: KeyError: 'y'", '\n  line 2: int("x")\n  line 4: raise KeyError("y")'),
        ("ValueError: a\n  File me\nb", "Error: ValueError: a\n  File me\nb", ""),
        ("Odd (it cannot be printed)", "Error: Odd (it cannot be printed)", ""),
        ("", "Error: ", ""),
    ],
)
def test_tracebacks_in_short(traceback: str, short: str, with_lines: str) -> None:
    assert error_text(traceback, with_lines=False) == short
    assert error_text(traceback, with_lines=True) == short + with_lines


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (CellResult(b"5\n", b""), "5"),
        (CellResult(b"5\n\n", b""), "5\n"),
        (CellResult(b"", b"", value="6"), "6"),
        (CellResult(b"a\n", b"", value="'b'"), "a\n'b'"),
        (CellResult(b"a", b"warning\n", value="6"), "a\nwarning\n6"),
        (CellResult(b"", b""), "(no output)"),
        (CellResult(b"\xff\n", b""), "\ufffd"),
        (CellResult(b"a\n", b"", error="ValueError: b", status="error"), "a\nError: ValueError: b"),
        (CellResult(b"a\n", b"", status="timeout", notice="Stopped."), "a\n[Stopped.]"),
        (CellResult(b"", b"", status="died", notice="It ended."), "[It ended.]"),
    ],
)
def test_what_the_model_reads_of_a_cell(result: CellResult, text: str) -> None:
    output = cell_output("x", result)
    assert output.text == text
    assert output.is_error == (result.status != "ok")


def test_what_the_model_reads_of_a_command() -> None:
    assert command_output(ExecResult(b"out\n", b"err\n", 0)).text == "out\nerr"
    assert command_output(ExecResult(b"", b"", 0)) == ToolOutput(
        "(no output)", False, command_output(ExecResult(b"", b"", 0)).data
    )
    failed = command_output(ExecResult(b"out\n", b"", 3, status="error"))
    assert (failed.text, failed.is_error, failed.data["exit_code"]) == ("out\n[exit code 3]", True, 3)


@pytest.fixture
async def tools(anyio_backend: str) -> AsyncIterator[Toolset]:
    async with code_tools(SandboxPolicy()) as tools:
        yield tools


async def test_python_keeps_its_variables(tools: Toolset, context: ToolContext) -> None:
    async def python(code: str) -> str:
        return (await tools.run("python", {"code": code}, context)).text

    assert await python("print(784 + 4829)") == "5613"
    assert await python("x = 3") == "(no output)"
    assert await python("print('a')\nx * 2") == "a\n6"
    assert await python("x / 0") == "Error: ZeroDivisionError: division by zero"
    assert await python("def half(n):\n    return 1 / n\n\nhalf(0)") == (
        "Error: ZeroDivisionError: division by zero\n  line 4: half(0)\n  line 2, in half: return 1 / n"
    )
    assert await python("print(1); x = = 2") == "Error: SyntaxError: invalid syntax"
    assert await python("import os; os._exit(0)") == (
        "[The Python process ended by itself (exit 0) before finishing the cell. "
        "Variables are lost, files in /workspace are kept.]"
    )
    assert (await python("x")).startswith("Error: NameError")


async def test_a_cell_that_hangs_keeps_its_output_and_its_variables(context: ToolContext) -> None:
    async with code_tools(SandboxPolicy(wall_seconds=1.0)) as tools:
        await tools.run("python", {"code": "x = 1"}, context)
        output = await tools.run("python", {"code": "print('so far', flush=True)\nwhile True: pass"}, context)
        again = await tools.run("python", {"code": "x"}, context)
    assert output.text.startswith("so far\n")
    assert "\n[Stopped after " in output.text
    assert output.is_error
    assert (output.data["status"], output.data["state"]) == ("timeout", "kept")
    assert output.data["enforced"]["network"] != "none"
    assert again.text == "1"


async def test_conversations_do_not_meet(tools: Toolset) -> None:
    first, second = ToolContext("c", "one"), ToolContext("c", "two")
    await tools.run("python", {"code": "x = 1; open('f', 'w').write('1')"}, first)
    assert (await tools.run("python", {"code": "x"}, second)).text.startswith("Error: NameError")
    assert (await tools.run("list_files", {}, second)).text == "(no files)"
    assert (await tools.run("list_files", {}, first)).text == "f (1 bytes)"
    await tools.end_session("one")
    assert (await tools.run("list_files", {}, first)).text == "(no files)"


async def test_a_name_cannot_pass_for_another_file(tools: Toolset, context: ToolContext) -> None:
    await tools.run(
        "python", {"code": "open('a\\nb.txt (5 bytes)', 'w').close(); open('\\x1b[2Jc ', 'w').close()"}, context
    )
    listed = (await tools.run("list_files", {}, context)).text
    assert sorted(listed.split("\n")) == ["'\\x1b[2Jc ' (0 bytes)", "'a\\nb.txt (5 bytes)' (0 bytes)"]


async def test_calls_at_the_same_time_share_one_sandbox(tools: Toolset, context: ToolContext) -> None:
    texts: list[str] = []

    async def run(i: int) -> None:
        texts.append((await tools.run("bash", {"command": f"echo {i} >> log; wc -l < log"}, context)).text)

    async with anyio.create_task_group() as group:
        for i in range(4):
            group.start_soon(run, i)
    assert sorted(texts) == ["1", "2", "3", "4"]


async def test_bash_python_and_files_share_a_workspace(tools: Toolset, context: ToolContext) -> None:
    async def run(name: str, **arguments: object) -> str:
        return (await tools.run(name, arguments, context)).text

    assert await run("create_file", path="src/a.py", text="one = 1\ntwo = 2\n") == "src/a.py: written, 2 lines"
    assert await run("bash", command="cat src/a.py; exit 2") == "one = 1\ntwo = 2\n[exit code 2]"
    assert await run("python", code="print(open('src/a.py').read())") == "one = 1\ntwo = 2\n"
    assert await run("view_file", path="src/a.py") == "    1  one = 1\n    2  two = 2"
    assert await run("view_file", path="src/a.py", num_lines=1) == "    1  one = 1\n(1 more lines: start_line=2)"
    assert await run("view_file", path="src/a.py", start_line=9) == "(src/a.py has 2 lines)"
    assert (
        await run("replace_in_file", path="src/a.py", old="two = 2", new="two = 1 + 1")
        == "src/a.py: replaced at line 2"
    )
    assert await run("bash", command="cat src/a.py") == "one = 1\ntwo = 1 + 1"
    assert (await run("replace_in_file", path="src/a.py", old="1", new="")).startswith(
        "Error: the old text stands 3 times"
    )
    assert (await run("replace_in_file", path="src/a.py", old="3", new="")).startswith(
        "Error: the old text stands 0 times"
    )
    await run("bash", command="head -c 10 /dev/zero > zeros; ln -s /etc/passwd link")
    assert await run("view_file", path="zeros") == "Error: zeros is not a text file (10 bytes)"
    for path in ("link", "../../etc/passwd", "/etc/passwd", "absent"):
        assert (await run("view_file", path=path)).startswith("Error: ")
    assert (await run("create_file", path="/etc/x", text="")).startswith("Error: ")


async def test_hostile_code_and_output(tools: Toolset, context: ToolContext) -> None:
    flood = await tools.run("python", {"code": "print('<｜User｜>' * 100_000)"}, context)
    assert len(flood.text) <= 16 << 10
    assert "left out" in flood.text
    escape = await tools.run("bash", {"command": r"printf '\033[31mred\033]0;t\007 \xe2\x80\xae'"}, context)
    assert escape.text == "red "
    for code in ("\ud800", "\0", "x" * 100_000, "('" * 5000):
        output = await tools.run("python", {"code": code}, context)
        assert output.text
    assert (await tools.run("python", {"code": "1 + 1"}, context)).text == "2"


async def test_a_dead_sandbox_is_said_and_replaced(context: ToolContext) -> None:
    try:
        sandbox = await start_sandbox()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox works here: {error}")
    opened = [sandbox]

    async def open() -> object:
        return opened.pop() if opened else await start_sandbox()

    tools = Toolset([python_tool(CodeSession(open=open))])  # type: ignore[arg-type]
    assert (await tools.run("python", {"code": "x = 1"}, context)).text == "(no output)"
    await sandbox.close()
    lost = await tools.run("python", {"code": "x"}, context)
    assert lost.text.startswith("Error: the sandbox is closed; ")
    assert "variables and files are lost" in lost.text
    assert (await tools.run("python", {"code": "1 + 1"}, context)).text == "2"
    await tools.aclose()


async def test_a_conversation_that_ends_while_its_sandbox_opens_leaves_none() -> None:
    opening, may_open, closed = anyio.Event(), anyio.Event(), []

    class Opened:
        async def close(self) -> None:
            closed.append(self)

    async def open() -> Opened:
        opening.set()
        await may_open.wait()
        return Opened()

    session = CodeSession(open=open)  # type: ignore[arg-type]
    async with anyio.create_task_group() as group:
        group.start_soon(session.sandbox, "one")
        await opening.wait()
        group.start_soon(session.end_session, "one")
        await anyio.wait_all_tasks_blocked()
        may_open.set()
    assert len(closed) == 1


async def test_calls_that_meet_the_same_dead_sandbox_replace_it_once(context: ToolContext) -> None:
    """The second must not close what was opened after the first."""

    class Dead:
        async def run_python(self, code: str) -> CellResult:
            await anyio.sleep(0 if code == "first" else 0.05)
            raise SandboxClosed("the sandbox is closed")

        async def close(self) -> None:
            closed.append(self)

    closed: list[Dead] = []

    async def open() -> Dead:
        return Dead()

    session = CodeSession(open=open)  # type: ignore[arg-type]
    tools = Toolset([python_tool(session)])
    async with anyio.create_task_group() as group:
        group.start_soon(tools.run, "python", {"code": "second"}, context)
        await tools.run("python", {"code": "first"}, context)
        new = await session.sandbox(context.session_id)
    assert len(closed) == 1
    assert await session.sandbox(context.session_id) is new


async def test_a_cancelled_call_leaves_the_sandbox_usable(tools: Toolset, context: ToolContext) -> None:
    await tools.run("python", {"code": "x = 1"}, context)
    with anyio.move_on_after(0.2) as scope:
        await tools.run("python", {"code": "while True: pass"}, context)
    assert scope.cancelled_caught
    assert (await tools.run("python", {"code": "x"}, context)).text == "1"


async def test_a_lent_sandbox_is_not_closed(context: ToolContext) -> None:
    try:
        sandbox = await start_sandbox()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox works here: {error}")
    async with sandbox:
        tools = Toolset([python_tool(sandbox)])
        assert (await tools.run("python", {"code": "x = 2"}, context)).text == "(no output)"
        await tools.aclose()
        assert (await sandbox.run_python("x")).value == "2"
    closed = await tools.run("python", {"code": "x"}, context)
    assert closed.text == "Error: the sandbox is closed; variables and files are lost, no code can be run any more"


async def test_without_a_sandbox_nothing_runs(context: ToolContext) -> None:
    async def open() -> object:
        raise SandboxUnavailable("nothing was run: no sandbox works here; fix: …")

    tools = Toolset(CodeSession(open=open).tools(files=True))  # type: ignore[arg-type]
    for name, arguments in [("python", {"code": "1"}), ("bash", {"command": "ls"}), ("list_files", {})]:
        with pytest.raises(SandboxUnavailable, match="nothing was run"):
            await tools.run(name, arguments, context)


def test_the_sandbox_stops_a_call_before_the_toolset_does() -> None:
    session = CodeSession(SandboxPolicy(wall_seconds=120.0))
    for tool in session.tools(files=True):
        assert tool.timeout is not None
        assert tool.timeout > 120.0 + session.policy.grace_seconds


def test_the_python_tool_as_the_model_sees_it() -> None:
    tool = python_tool(CodeSession())
    assert tool.description == "Run Python code. Variables are kept between calls. Returns what it prints."
    assert tool.parameters == {
        "type": "object",
        "properties": {"code": {"type": "string"}},
        "required": ["code"],
        "additionalProperties": False,
    }
