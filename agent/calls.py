"""The calls of one completion on their way to their results: how far each has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from v32.agent.events import CallResult, ToolStarted
from v32.model_runtime.messages import MalformedToolCall, ToolCall

Call = ToolCall | MalformedToolCall


@dataclass(slots=True)
class OpenCalls:
    """The calls of the last completion until all their results have been returned; empty in between."""

    calls: tuple[Call, ...] = ()
    started: set[str] = field(default_factory=set)
    results: dict[str, CallResult] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.calls)

    @property
    def unanswered(self) -> tuple[Call, ...]:
        return tuple(call for call in self.calls if call.id not in self.results)

    def start(self, event: ToolStarted) -> None:
        self.started.add(event.call_id)

    def finish(self, result: CallResult) -> None:
        self.results[result.call_id] = result

    def in_call_order(self) -> tuple[CallResult, ...]:
        """One result per call, in call order; every call must have been answered."""
        return tuple(self.results[call.id] for call in self.calls)
