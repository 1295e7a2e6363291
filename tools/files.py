"""The tools `view_file`, `create_file`, `replace_in_file` and `list_files` on the workspace of a sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from v32.sandboxes.sandbox import FileEntry, Sandbox
from v32.tools.code_session import CodeSession, session_of
from v32.tools.function_tool import FunctionTool
from v32.tools.tool import Tool, ToolContext, ToolError

MAX_FILE_BYTES = 1 << 20

WorkspacePath = Annotated[str, Field(description="Path below the workspace.")]


def files_tools(session: CodeSession | Sandbox) -> list[Tool]:
    """`view_file`, `create_file`, `replace_in_file`, `list_files` on the workspace of the sandbox."""
    owner = session_of(session)

    async def view_file(
        path: WorkspacePath,
        context: ToolContext,
        start_line: Annotated[int, Field(ge=1)] = 1,
        num_lines: Annotated[int, Field(ge=1, le=1000)] = 200,
    ) -> str:
        async with owner.lending(context) as sandbox:
            lines = (await _read_text(sandbox, path)).splitlines()
        shown = lines[start_line - 1 : start_line - 1 + num_lines]
        if not shown:
            return f"({path} has {len(lines)} lines)"
        numbered = "\n".join(f"{number:>5}  {line}" for number, line in enumerate(shown, start_line))
        end = start_line + len(shown) - 1
        return numbered if end == len(lines) else f"{numbered}\n({len(lines) - end} more lines: start_line={end + 1})"

    async def create_file(path: WorkspacePath, text: str, context: ToolContext) -> str:
        async with owner.lending(context) as sandbox:
            await sandbox.write_file(path, _encoded(text))
        return f"{path}: written, {len(text.splitlines())} lines"

    async def replace_in_file(
        path: WorkspacePath,
        old: Annotated[str, Field(description="Text that stands in the file exactly once.", min_length=1)],
        new: str,
        context: ToolContext,
    ) -> str:
        async with owner.lending(context) as sandbox:
            text = await _read_text(sandbox, path)
            if (count := text.count(old)) != 1:
                remedy = "view the file and copy the text exactly" if count == 0 else "add the lines around it"
                raise ToolError(f"the old text stands {count} times in {path}; {remedy}")
            await sandbox.write_file(path, _encoded(text.replace(old, new)))
        return f"{path}: replaced at line {text[: text.index(old)].count(chr(10)) + 1}"

    async def list_files(context: ToolContext) -> str:
        async with owner.lending(context) as sandbox:
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


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")
