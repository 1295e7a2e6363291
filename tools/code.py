"""The tools `python` and `bash`. Code in, text for the model out.

What the model reads of a Python cell is fixed, because models are trained on it; parts that are empty are left out:

    what it printed                                    without the last newline; then what it wrote to stderr
    repr of the last expression                        if it has a value
    Error: ZeroDivisionError: division by zero         if it raised; then, for code of several lines,
      line 2, in half: return n / 0                    where
    [notices of the sandbox, in square brackets]
    (no output)                                        if there is nothing else
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from v32.sandboxes.sandbox import CellResult, ExecResult, Sandbox
from v32.tools.code_session import CodeSession, session_of
from v32.tools.function_tool import FunctionTool
from v32.tools.tool import Tool, ToolContext, ToolOutput

NO_OUTPUT = "(no output)"
DEAD = ("session_dead", "protocol_violation")
MAX_FRAMES = 5

_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+)(?:, in (?P<name>.*))?$', re.MULTILINE)


def python_tool(session: CodeSession | Sandbox) -> Tool:
    """The tool `python(code)`: cells in one interpreter."""
    owner = session_of(session)

    async def python(code: str, context: ToolContext) -> ToolOutput:
        async with owner.lending(context) as sandbox:
            result = await sandbox.run_python(code)
            if result.status in DEAD:
                await owner.let_go(context, sandbox)
        return cell_output(code, result)

    description = "Run Python code. Variables are kept between calls. Returns what it prints."
    return FunctionTool(python, description=description, timeout=owner.timeout, holder=owner)


def bash_tool(session: CodeSession | Sandbox) -> Tool:
    """The tool `bash(command)`: each call a new shell in the same workspace."""
    owner = session_of(session)

    async def bash(command: str, context: ToolContext) -> ToolOutput:
        async with owner.lending(context) as sandbox:
            result = await sandbox.bash(command)
            if result.status in DEAD:
                await owner.let_go(context, sandbox)
        return command_output(result)

    description = "Run a shell command. Files are kept between calls. Returns what it prints."
    return FunctionTool(bash, description=description, timeout=owner.timeout, holder=owner)


def cell_output(code: str, result: CellResult) -> ToolOutput:
    """The text of a Python cell, in the format above, and the full traceback and the host's measurements as data."""
    parts = [_decoded(result.stdout), _decoded(result.stderr), result.value]
    if result.error is not None:
        parts.append(error_text(result.error, with_lines="\n" in code.strip()))
    data = {"traceback": result.error} if result.error is not None else {}
    return _output(parts, result, is_error=result.error is not None, data=data)


def command_output(result: ExecResult) -> ToolOutput:
    """The text of a shell command: output, errors, and its exit code unless that is 0."""
    parts = [_decoded(result.stdout), _decoded(result.stderr)]
    failed = result.exit_code not in (0, None)
    if failed:
        parts.append(f"[exit code {result.exit_code}]")
    return _output(parts, result, is_error=failed, data={"exit_code": result.exit_code})


def error_text(traceback: str, *, with_lines: bool) -> str:
    """A traceback in short: `Error: <type>: <message>`, and for longer code the lines it went through."""
    frames = list(_FRAME.finditer(traceback))
    rest = traceback[frames[-1].end() :] if frames else traceback
    lines = rest.strip("\n").split("\n")
    while len(lines) > 1 and (lines[0].startswith("    ") or lines[0].startswith("  [") or lines[0] == _HEAD):
        del lines[0]
    text = "Error: " + "\n".join(lines)
    if with_lines:
        text += "".join(f"\n{line}" for line in _lines_passed(traceback, frames[-MAX_FRAMES:]))
    return text


_HEAD = "Traceback (most recent call last):"


def _lines_passed(traceback: str, frames: list[re.Match[str]]) -> Iterator[str]:
    for frame in frames:
        if not frame["file"].startswith("<"):
            continue  # inside a library: the line of the cell that called it says more
        source = traceback[frame.end() + 1 :].split("\n", 1)[0]
        name = "" if frame["name"] in (None, "<module>") else f", in {frame['name']}"
        shown = f": {source.strip()}" if source.startswith("    ") else ""
        yield f"  line {frame['line']}{name}{shown}"


def _output(
    parts: Sequence[str | None], result: CellResult | ExecResult, *, is_error: bool, data: Mapping[str, Any]
) -> ToolOutput:
    texts = [part for part in parts if part]
    if result.notice:
        texts.append(f"[{result.notice}]")
    measured = {
        "status": result.status,
        "state": result.state,
        "seconds": result.seconds,
        "truncated": result.truncated,
        "enforced": dataclasses.asdict(result.enforced),
    }
    is_error = is_error or result.status not in ("ok", "error")
    return ToolOutput("\n".join(texts) or NO_OUTPUT, is_error, {**measured, **data})


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").removesuffix("\n")
