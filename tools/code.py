"""Tools that run in a sandbox: `python`, `bash`, and files. Code in, text for the model out.

A `CodeSession` owns the sandboxes: one for each conversation, opened at its first call, kept until `end_session` or
`aclose`. Where no sandbox works, the first call raises `SandboxUnavailable`; nothing ever runs unisolated.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import anyio
from pydantic import Field

from v32.sandboxes.errors import SandboxClosed, SandboxFileError
from v32.sandboxes.sandbox import CellResult, ExecResult, FileEntry, Sandbox, SandboxPolicy
from v32.tools.function_tool import FunctionTool
from v32.tools.tool import Tool, ToolContext, ToolError, ToolOutput

NO_OUTPUT = "(no output)"
MAX_FILE_BYTES = 1 << 20
MAX_FRAMES = 5

WorkspacePath = Annotated[str, Field(description="Path below the workspace.")]

_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+)(?:, in (?P<name>.*))?$', re.MULTILINE)
# Opening, the sandbox's own interrupt and grace come on top of the time that the code may take.
_MARGIN_SECONDS = 15.0


class CodeSession:
    """The sandboxes behind the code tools, by session id.

    `open` makes a sandbox; by default it is `v32.sandboxes.start_sandbox(policy, backend)`.
    """

    def __init__(
        self,
        policy: SandboxPolicy | None = None,
        *,
        backend: Literal["auto", "bubblewrap", "container"] = "auto",
        open: Callable[[], Awaitable[Sandbox]] | None = None,
    ) -> None:
        self.policy = policy or SandboxPolicy()
        self._open = open or (lambda: _open_default(self.policy, backend))
        self._lent: Sandbox | None = None
        self._sandboxes: dict[str, Sandbox] = {}
        self._opening: dict[str, anyio.Lock] = {}

    @classmethod
    def of(cls, sandbox: Sandbox, policy: SandboxPolicy | None = None) -> CodeSession:
        """A sandbox that somebody else opened and will close; every conversation shares it."""
        session = cls(policy)
        session._lent = sandbox
        return session

    @property
    def is_lent(self) -> bool:
        """Whether the one sandbox is somebody else's, so that none is opened in its place."""
        return self._lent is not None

    def tools(self, *, files: bool = False) -> list[Tool]:
        """`python` and `bash`, and with `files` the tools to view, create, change and list files, on one workspace."""
        return [python_tool(self), bash_tool(self), *(files_tools(self) if files else [])]

    @property
    def timeout(self) -> float:
        """Seconds a tool call may take, so that the sandbox's own limit comes first and partial output is kept."""
        return self.policy.wall_seconds + self.policy.grace_seconds + _MARGIN_SECONDS

    async def sandbox(self, session_id: str) -> Sandbox:
        """The sandbox of a conversation, opened if need be. Raises `SandboxUnavailable`."""
        if self._lent is not None:
            return self._lent
        async with self._opening.setdefault(session_id, anyio.Lock()):
            if session_id not in self._sandboxes:
                self._sandboxes[session_id] = await self._open()
            return self._sandboxes[session_id]

    async def end_session(self, session_id: str) -> None:
        """Close the sandbox of one conversation, if it has one; its next call opens a new one."""
        self._opening.pop(session_id, None)
        if sandbox := self._sandboxes.pop(session_id, None):
            await sandbox.close()

    async def aclose(self) -> None:
        """Close every sandbox; a later call opens a new one."""
        for session_id in list(self._sandboxes):
            await self.end_session(session_id)


def python_tool(session: CodeSession | Sandbox) -> Tool:
    """The tool `python(code)`: cells in one interpreter."""
    owner = _owner(session)

    async def python(code: str, context: ToolContext) -> ToolOutput:
        async with _sandbox(owner, context) as sandbox:
            result = await sandbox.run_python(code)
        await _replace_if_dead(owner, context, result)
        return cell_output(code, result)

    description = "Run Python code. Variables are kept between calls. Returns what it prints."
    return FunctionTool(python, description=description, timeout=owner.timeout, holder=owner)


def bash_tool(session: CodeSession | Sandbox) -> Tool:
    """The tool `bash(command)`: each call a new shell in the same workspace."""
    owner = _owner(session)

    async def bash(command: str, context: ToolContext) -> ToolOutput:
        async with _sandbox(owner, context) as sandbox:
            result = await sandbox.bash(command)
        await _replace_if_dead(owner, context, result)
        return command_output(result)

    description = "Run a shell command. Files are kept between calls. Returns what it prints."
    return FunctionTool(bash, description=description, timeout=owner.timeout, holder=owner)


def files_tools(session: CodeSession | Sandbox) -> list[Tool]:
    """`view_file`, `create_file`, `replace_in_file`, `list_files` on the workspace of the sandbox."""
    owner = _owner(session)

    async def view_file(
        path: WorkspacePath,
        context: ToolContext,
        start_line: Annotated[int, Field(ge=1)] = 1,
        num_lines: Annotated[int, Field(ge=1, le=1000)] = 200,
    ) -> str:
        async with _sandbox(owner, context) as sandbox:
            lines = (await _read_text(sandbox, path)).splitlines()
        shown = lines[start_line - 1 : start_line - 1 + num_lines]
        if not shown:
            return f"({path} has {len(lines)} lines)"
        numbered = "\n".join(f"{number:>5}  {line}" for number, line in enumerate(shown, start_line))
        end = start_line + len(shown) - 1
        return numbered if end == len(lines) else f"{numbered}\n({len(lines) - end} more lines: start_line={end + 1})"

    async def create_file(path: WorkspacePath, text: str, context: ToolContext) -> str:
        async with _sandbox(owner, context) as sandbox:
            await sandbox.write_file(path, _encoded(text))
        return f"{path}: written, {len(text.splitlines())} lines"

    async def replace_in_file(
        path: WorkspacePath,
        old: Annotated[str, Field(description="Text that stands in the file exactly once.", min_length=1)],
        new: str,
        context: ToolContext,
    ) -> str:
        async with _sandbox(owner, context) as sandbox:
            text = await _read_text(sandbox, path)
            if (count := text.count(old)) != 1:
                remedy = "view the file and copy the text exactly" if count == 0 else "add the lines around it"
                raise ToolError(f"the old text stands {count} times in {path}; {remedy}")
            await sandbox.write_file(path, _encoded(text.replace(old, new)))
        return f"{path}: replaced at line {text[: text.index(old)].count(chr(10)) + 1}"

    async def list_files(context: ToolContext) -> str:
        async with _sandbox(owner, context) as sandbox:
            entries = await sandbox.list_files()
        lines = [f"{_shown(entry.path)}/" if entry.is_dir else _with_size(entry) for entry in entries]
        return "\n".join(lines) or "(no files)"

    described: dict[Callable[..., Any], str] = {
        view_file: "Show a file with line numbers.",
        create_file: "Write a file, over an old one if there is one.",
        replace_in_file: "Replace a text in a file.",
        list_files: "List the files of the workspace.",
    }
    return [
        FunctionTool(function, description=description, timeout=owner.timeout, holder=owner)
        for function, description in described.items()
    ]


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


@asynccontextmanager
async def _sandbox(owner: CodeSession, context: ToolContext) -> AsyncIterator[Sandbox]:
    """The sandbox of the conversation; what it refuses is for the model to read, and a dead one is let go."""
    try:
        yield await owner.sandbox(context.session_id)
    except SandboxFileError as error:
        raise ToolError(str(error)) from error
    except SandboxClosed as error:
        await owner.end_session(context.session_id)
        reason = str(error).partition(";")[0]  # what follows is for programmers
        outlook = "no code can be run any more" if owner.is_lent else "the next call starts anew"
        raise ToolError(f"{reason}; variables and files are lost, {outlook}") from error


async def _replace_if_dead(owner: CodeSession, context: ToolContext, result: CellResult | ExecResult) -> None:
    if result.status in ("session_dead", "protocol_violation"):
        await owner.end_session(context.session_id)


def _owner(session: CodeSession | Sandbox) -> CodeSession:
    return session if isinstance(session, CodeSession) else CodeSession.of(session)


async def _open_default(policy: SandboxPolicy, backend: Literal["auto", "bubblewrap", "container"]) -> Sandbox:
    from v32.sandboxes import start_sandbox

    return await start_sandbox(policy, backend)


async def _read_text(sandbox: Sandbox, path: str) -> str:
    data = await sandbox.read_file(path, max_bytes=MAX_FILE_BYTES)
    if b"\0" in data:
        raise ToolError(f"{path} is not a text file ({len(data):,} bytes)")
    return data.decode("utf-8", errors="replace")


def _with_size(entry: FileEntry) -> str:
    return f"{_shown(entry.path)} ({entry.size:,} bytes)"


def _shown(path: str) -> str:
    """A name as it is, or quoted where it holds what could pass for another line or another file."""
    return path if path.isprintable() and path == path.strip() else repr(path)


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").removesuffix("\n")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")
