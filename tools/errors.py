"""The exceptions of tools.

ToolError (tool.py)          what the model should read and may repair; becomes the text of a result
ToolsError
├── ToolDefinitionError      a function, schema or name that cannot be offered as a tool
├── DocumentError            a document or folder that cannot be indexed
├── WorkerError              a tool's own failure, carried out of its worker process
└── ProviderError            a web search provider that is not configured
"""

from __future__ import annotations


class ToolsError(Exception):
    """Base of everything that tools raise on purpose at programmers and operators."""


class ToolDefinitionError(ToolsError):
    """Raised where a tool is made: the message names the tool, what is wrong, and how to write it instead."""


class DocumentError(ToolsError):
    """A document that cannot be indexed; the message names it and the file it came from."""


class WorkerError(ToolsError):
    """A tool failed in its worker process: `kind` names the exception, or says how the process ended."""

    def __init__(self, kind: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message
        self.traceback = traceback


class ProviderError(ToolsError):
    """A search provider that cannot be used; the message names what to set."""
