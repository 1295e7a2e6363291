"""The tools of an agent together: the one way to check their calls and to run them.

What the model does wrong comes back as text that says what and how to do better; `run` raises only for what the
machine cannot do at all (`SandboxUnavailable`) and when it is cancelled.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import anyio

from v32.sandboxes.errors import SandboxUnavailable
from v32.tools.errors import ToolDefinitionError, WorkerError
from v32.tools.gate import MAX_CHARS, for_model
from v32.tools.tool import Tool, ToolContext, ToolError, ToolOutput
from v32.tools.validation import Problem, Validator, shown

DEFAULT_TIMEOUT = 30.0
MAX_PROBLEMS_SHOWN = 20

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Toolset:
    """Tools under their names. Raises `ToolDefinitionError` for a bad name, a name taken twice, a bad schema.

    `timeout` holds for tools that have none of their own; `max_chars` bounds each result.
    """

    def __init__(
        self, tools: Iterable[Tool] = (), *, timeout: float = DEFAULT_TIMEOUT, max_chars: int = MAX_CHARS
    ) -> None:
        self.timeout = timeout
        self.max_chars = max_chars
        self._tools: dict[str, Tool] = {}
        self._validators: dict[str, Validator] = {}
        for tool in tools:
            self._offer(tool)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __getitem__(self, name: str) -> Tool:
        """Raises `KeyError` for an unknown name."""
        return self._tools[name]

    @property
    def names(self) -> list[str]:
        return list(self._tools)

    def validate(self, name: str, arguments: Any) -> list[Problem]:
        """Everything that is wrong with a call; empty if it may run."""
        if name not in self._tools:
            return [Problem("", self._unknown(name))]
        if not isinstance(arguments, Mapping):
            return [Problem("$", f"arguments must be an object, got {shown(arguments)}")]
        return self._validators[name].problems(dict(arguments))

    async def run(self, name: str, arguments: Any, context: ToolContext) -> ToolOutput:
        """One call, one result: validated, within its timeout, its text through the gate."""
        problems = self.validate(name, arguments)
        if problems:
            return self._gated(refusal(name, problems))
        tool = self._tools[name]
        timeout = self.timeout if tool.timeout is None else tool.timeout
        output = None
        with anyio.move_on_after(timeout) as deadline:
            output = await _contained(tool, arguments, context)
        if output is None:
            assert deadline.cancelled_caught
            end = "was stopped" if getattr(tool, "stops", True) else "was given up; it may still be running"
            output = _error(f"{name} took longer than {timeout:g} s and {end}", "timeout")
        return self._gated(output)

    async def end_session(self, session_id: str) -> None:
        """Free what tools hold for one session: its sandbox, its open pages."""
        await self._close_all("end_session", session_id)

    async def aclose(self) -> None:
        """Free what tools hold. The toolset can be used again; tools that keep state start anew."""
        await self._close_all("aclose")

    def _offer(self, tool: Tool) -> None:
        if not isinstance(tool, Tool):
            raise ToolDefinitionError(f"{tool!r} is not a tool; decorate a function with @tool, or use RawTool")
        if not _NAME.fullmatch(tool.name):
            raise ToolDefinitionError(
                f"tool name {tool.name!r} cannot be written in a call; use 1 to 64 of A-Z a-z 0-9 _ -"
            )
        if tool.name in self._tools:
            raise ToolDefinitionError(
                f"two tools are named {tool.name!r}: {self._tools[tool.name]!r} and {tool!r}; rename one with name="
            )
        validator = Validator(tool.parameters, f"parameters of tool {tool.name!r}")
        if tool.parameters.get("type") != "object":
            raise ToolDefinitionError(
                f'parameters of tool {tool.name!r} must be a schema with "type": "object", '
                f"got {tool.parameters.get('type')!r}"
            )
        self._validators[tool.name] = validator
        self._tools[tool.name] = tool

    def _unknown(self, name: str) -> str:
        offered = ", ".join(self._tools) or "none"
        close = difflib.get_close_matches(str(name)[:200], self._tools, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown tool {str(name)[:200]!r}; offered: {offered}{hint}"

    def _gated(self, output: ToolOutput) -> ToolOutput:
        return ToolOutput(for_model(output.text, max_chars=self.max_chars), output.is_error, output.data)

    async def _close_all(self, method: str, *arguments: str) -> None:
        """Every distinct holder is closed, whatever happens to the others; their exceptions come together."""
        holders = {getattr(tool, "holder", tool) for tool in self}
        failures: list[Exception] = []
        with anyio.CancelScope(shield=True):
            for close in [getattr(holder, method) for holder in holders if hasattr(holder, method)]:
                try:
                    await close(*arguments)
                except Exception as error:
                    failures.append(error)
        if failures:
            raise ExceptionGroup("tools did not close cleanly", failures)


def refusal(name: str, problems: list[Problem]) -> ToolOutput:
    """What the model reads instead of a result when its call cannot run."""
    data = {"failure": "invalid_arguments", "problems": [(problem.path, problem.reason) for problem in problems]}
    if len(problems) == 1 and not problems[0].path:
        return ToolOutput(f"Error: {problems[0].reason}", True, {**data, "failure": "unknown_tool"})
    if len(problems) == 1:
        return ToolOutput(f"Error: invalid arguments for {name}: {problems[0]}", True, data)
    shown = [f"- {problem}" for problem in problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > MAX_PROBLEMS_SHOWN:
        shown.append(f"- and {len(problems) - MAX_PROBLEMS_SHOWN} more")
    return ToolOutput(f"Error: invalid arguments for {name}:\n" + "\n".join(shown), True, data)


async def _contained(tool: Tool, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
    """The tool's output; its failures as text."""
    try:
        output = await tool.call(arguments, context)
    except SandboxUnavailable:
        raise
    except ToolError as error:
        return _error(_said(error), "tool_error")
    except WorkerError as error:
        return _error(f"{tool.name} failed: {error}", "crash", exception=error.kind, traceback=error.traceback)
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        message = f"{tool.name} failed: {kind}: {_said(error)}"
        return _error(message, "crash", exception=kind, traceback=traceback.format_exc())
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        return _error(f"{tool.name} failed: something that it waited for was cancelled", "crash")
    if not isinstance(output, ToolOutput):
        return _error(f"{tool.name} failed: it returned {type(output).__name__}, not ToolOutput", "crash")
    if not isinstance(output.text, str):
        return _error(f"{tool.name} failed: the text of its output is {type(output.text).__name__}, not str", "crash")
    return output


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its own code
        return "(its message cannot be shown)"


def _error(message: str, failure: str, **data: str) -> ToolOutput:
    return ToolOutput(f"Error: {message}", True, {"failure": failure, **data})
