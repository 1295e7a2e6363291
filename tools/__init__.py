"""Tools: what the model may do, from typed functions to search and sandboxed code. Knows nothing of messages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from v32.tools.function_tool import FunctionTool, RawTool, tool
from v32.tools.tool import Tool, ToolContext, ToolError, ToolOutput

if TYPE_CHECKING:
    pass

_LAZY: dict[str, str] = {}

__all__ = ["FunctionTool", "RawTool", "Tool", "ToolContext", "ToolError", "ToolOutput", "tool", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
