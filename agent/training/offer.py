"""Tools as specifications for the prompt, taken from the real tools so that training sees what the agent will offer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from v32.model_runtime.messages import ToolSpec
from v32.tools.local_index import LocalIndex
from v32.tools.search import find_tool, open_page_tool, search_tool
from v32.tools.tool import Tool


def spec_of(tool: Tool) -> ToolSpec:
    return ToolSpec(tool.name, tool.description, tool.parameters)


def builtin_specs(names: Sequence[str]) -> list[ToolSpec]:
    """The built-in tools of these names, in this order."""
    return [_builtin()[name] for name in names]


@cache
def _builtin() -> dict[str, ToolSpec]:
    index = LocalIndex()
    tools = [search_tool(index), open_page_tool(index), find_tool(index)]
    specs = {tool.name: spec_of(tool) for tool in tools}
    specs["python"] = PYTHON
    return specs


PYTHON = ToolSpec(
    "python",
    "Run Python code. Variables are kept between calls. Returns what it prints.",
    {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python code."}},
        "required": ["code"],
        "additionalProperties": False,
    },
)
