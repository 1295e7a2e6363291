"""Tools: what the model may do, from typed functions to search and sandboxed code. Knows nothing of messages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from v32.tools.function_tool import FunctionTool, RawTool, tool
from v32.tools.tool import Tool, ToolContext, ToolError, ToolOutput

if TYPE_CHECKING:
    from v32.tools.code import bash_tool, python_tool
    from v32.tools.code_session import CodeSession
    from v32.tools.document import Document
    from v32.tools.errors import DocumentError, ProviderError, ToolDefinitionError, ToolsError, WorkerError
    from v32.tools.files import files_tools
    from v32.tools.gate import for_model
    from v32.tools.local_index import Hit, LocalIndex
    from v32.tools.mcp_client import mcp_tools
    from v32.tools.search import SearchProvider, document_tools, find_tool, open_page_tool, search_tool
    from v32.tools.toolset import Toolset
    from v32.tools.validation import Problem, Validator

# name → the module it comes from, imported when the name is first used
_LAZY = {
    "CodeSession": "code_session",
    "Document": "document",
    "DocumentError": "errors",
    "Hit": "local_index",
    "LocalIndex": "local_index",
    "Problem": "validation",
    "ProviderError": "errors",
    "SearchProvider": "search",
    "ToolDefinitionError": "errors",
    "ToolsError": "errors",
    "Toolset": "toolset",
    "Validator": "validation",
    "WorkerError": "errors",
    "bash_tool": "code",
    "document_tools": "search",
    "files_tools": "files",
    "find_tool": "search",
    "for_model": "gate",
    "mcp_tools": "mcp_client",
    "open_page_tool": "search",
    "python_tool": "code",
    "search_tool": "search",
}

__all__ = [
    "CodeSession",
    "Document",
    "DocumentError",
    "FunctionTool",
    "Hit",
    "LocalIndex",
    "Problem",
    "ProviderError",
    "RawTool",
    "SearchProvider",
    "Tool",
    "ToolContext",
    "ToolDefinitionError",
    "ToolError",
    "ToolOutput",
    "ToolsError",
    "Toolset",
    "Validator",
    "WorkerError",
    "bash_tool",
    "document_tools",
    "files_tools",
    "find_tool",
    "for_model",
    "mcp_tools",
    "open_page_tool",
    "python_tool",
    "search_tool",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
