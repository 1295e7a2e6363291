"""Tools as specifications for the prompt, taken from the real tools so that training sees what the agent will offer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from v32.agent.tasks.toolbox import MAX_HITS
from v32.model_runtime.messages import ToolSpec
from v32.tools.code import CodeSession, bash_tool, python_tool
from v32.tools.local_index import LocalIndex
from v32.tools.search import find_tool, open_page_tool, search_tool
from v32.tools.tool import Tool


def spec_of(tool: Tool) -> ToolSpec:
    return ToolSpec(tool.name, tool.description, tool.parameters)


def builtin_specs(names: Sequence[str], max_hits: int = MAX_HITS) -> list[ToolSpec]:
    """The built-in tools of these names, in this order; `max_hits` is the default of search."""
    return [_builtin(max_hits)[name] for name in names]


@cache
def _builtin(max_hits: int) -> dict[str, ToolSpec]:
    index, code = LocalIndex(), CodeSession()
    tools = [search_tool(index, topn=max_hits), open_page_tool(index), find_tool(index)]
    return {tool.name: spec_of(tool) for tool in [*tools, python_tool(code), bash_tool(code)]}
