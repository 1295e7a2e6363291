"""The tools of a task, for real: a search index over its documents, Python in a sandbox, its record tables.

`simulate` gives the text a call returns without an event loop or a sandbox, for writing demonstrations; the tests
hold it against the real tools.
"""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from v32.agent.tasks.task import DemonstratedCall, RecordTool, Task
from v32.tools import document
from v32.tools.code import CodeSession, python_tool
from v32.tools.function_tool import RawTool
from v32.tools.local_index import LocalIndex
from v32.tools.search import find_tool, format_hits, open_page_tool, search_tool
from v32.tools.tool import Tool, ToolError
from v32.tools.toolset import Toolset, refusal

MAX_HITS = 3
"""Search results per call; enough for a fact and its look-alikes, short enough for a small model."""


class Toolbox:
    """What one task offers. `python` is made by the caller, who owns the sandbox."""

    def __init__(self, task: Task, max_hits: int = MAX_HITS) -> None:
        self.task, self.max_hits = task, max_hits
        self._records = {tool.name: tool for tool in task.records}

    @cached_property
    def index(self) -> LocalIndex:
        return LocalIndex(document.Document(d.id, d.text) for d in self.task.documents)

    @cached_property
    def _offered(self) -> Toolset:
        return Toolset(self.tools(python_tool(CodeSession())))

    def tools(self, python: Tool | None) -> list[Tool]:
        """The offered tools in the task's order: built-in ones first."""
        builtin = {
            "search": lambda: search_tool(self.index, topn=self.max_hits),
            "open_page": lambda: open_page_tool(self.index),
            "find": lambda: find_tool(self.index),
            "python": lambda: python,
        }
        made = [builtin[name]() for name in self.task.builtin_tools]
        return [tool for tool in [*made, *map(record_tool, self.task.records)] if tool is not None]

    def simulate(self, call: DemonstratedCall) -> str:
        """The text that `call` returns."""
        if call.name == "search":
            return format_hits(self.index.search(str(call.arguments["query"]), self.max_hits))
        if call.name == "python":
            return _run_trusted(str(call.arguments["code"]))
        record = self._records.get(call.name)
        if record is None or call.arguments.keys() != {record.parameter}:
            return refusal(call.name, self._offered.validate(call.name, call.arguments)).text
        try:
            return look_up(record, call.arguments)
        except ToolError as error:
            return f"Error: {error}"


def record_tool(record: RecordTool) -> Tool:
    """A record table as a tool."""
    description = {"description": record.parameter_description} if record.parameter_description else {}
    parameters = {
        "type": "object",
        "properties": {record.parameter: {"type": "string", **description}},
        "required": [record.parameter],
        "additionalProperties": False,
    }

    def call(**arguments: Any) -> str:
        return look_up(record, arguments)

    return RawTool(record.name, record.description, parameters, call, in_worker=False)


def look_up(record: RecordTool, arguments: Mapping[str, Any]) -> str:
    """The value under a name; an unknown name is an error that suggests the closest one."""
    key = str(arguments[record.parameter])
    if key in record.records:
        return record.records[key]
    raise ToolError(f"unknown {record.parameter} {key!r}; did you mean {closest(key, list(record.records))!r}?")


def closest(word: str, known: Sequence[str]) -> str:
    """The known word most like `word`; the first among equals."""
    return max(known, key=lambda candidate: difflib.SequenceMatcher(None, word, candidate).ratio())


def _run_trusted(code: str) -> str:
    """What a demonstration's own code prints; never code that a model wrote."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, {})
    except SyntaxError as error:
        return f"Error: SyntaxError: {error.msg}"
    return printed.getvalue().removesuffix("\n") or "(no output)"
