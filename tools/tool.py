"""What the model may call: the Tool protocol, its output, its failure. Knows nothing of messages or models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


class ToolError(Exception):
    """A failure that the model should read and may repair: `raise ToolError("unknown city 'Pariss'")`.

    Becomes the result text `Error: <message>`; never ends the run.
    """


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool gives back: text for the model, and data for programs that look at the run."""

    text: str
    is_error: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)
    """Beside the text, for traces and tests: exit codes, document ids, `enforced` of a sandbox."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a running call may know of its surroundings."""

    call_id: str
    session_id: str = ""


@runtime_checkable
class Tool(Protocol):
    """A named function with a JSON Schema.

    `call` gets arguments that the schema has accepted, runs under the event loop and is cancelled at `timeout`.
    What goes wrong with the model's request is a `ToolError`; any other exception counts as a crash of the tool.
    """

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON Schema (2020-12) of the arguments; type object."""

    @property
    def timeout(self) -> float | None:
        """Seconds that one call may take; None: the agent's default."""

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput: ...
