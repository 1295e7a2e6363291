"""What happens in a session, one frozen dataclass each.

Durable events are written to the journal before anything acts on them; a session is the fold of its durable events.
Passing events (the model's deltas) are announced and forgotten.

    UserSaid ── Completed ─┬─ Stopped                                  the model answered
        Rebased may stand  └─ ToolStarted… ToolFinished… ToolsReturned ── Completed …
        before any Completed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from v32.agent.limits import StopReason
from v32.model_runtime.messages import Completion, Delta, Usage

Outcome = Literal[
    "ok",
    "error",
    "malformed",
    "unknown_tool",
    "invalid_arguments",
    "timeout",
    "crashed",
    "cancelled",
    "interrupted",
    "over_limit",
]


@dataclass(frozen=True, slots=True)
class CallResult:
    """The one result of one call: the text that the model reads, and how it came about."""

    call_id: str
    name: str
    text: str
    outcome: Outcome = "ok"
    seconds: float = 0.0
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_error(self) -> bool:
        return self.outcome != "ok"

    @property
    def was_refused(self) -> bool:
        """The call could not be run as the model wrote it."""
        return self.outcome in ("malformed", "unknown_tool", "invalid_arguments")

    @property
    def was_run(self) -> bool:
        """The call counts as run, whatever came of it."""
        return not self.was_refused and self.outcome != "over_limit"


@dataclass(frozen=True, slots=True)
class UserSaid:
    """A user message; `note` is the summary that a rebase put under it."""

    text: str
    note: str = ""

    @property
    def prompt(self) -> str:
        return f"{self.text}\n\n{self.note}" if self.note else self.text


@dataclass(frozen=True, slots=True)
class Completed:
    """The model has spoken: ids as sampled, and their parse."""

    completion: Completion


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """The intent to run a call. Journaled first: after a crash nobody runs it again unawares."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A call has its result, while its siblings may still run."""

    result: CallResult


@dataclass(frozen=True, slots=True)
class ToolsReturned:
    """Every call of the last completion has its result; they stand in the order of the calls."""

    results: tuple[CallResult, ...]
    seconds: float = 0.0
    """Wall time of all calls together."""


@dataclass(frozen=True, slots=True)
class Rebased:
    """The history was shortened: `kept` are the positions in it that stay, `note` goes under the last user message."""

    strategy: str
    kept: tuple[int, ...]
    note: str = ""
    usage: Usage = field(default_factory=Usage)
    tokens_before: int = 0
    tokens_after: int = 0


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run has ended."""

    reason: StopReason
    detail: str = ""


Spoken = UserSaid | Completed | ToolsReturned
"""The events that stand in the conversation itself."""
Durable = UserSaid | Completed | ToolStarted | ToolFinished | ToolsReturned | Rebased | Stopped
Event = Durable | Delta
