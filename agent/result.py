"""What a run gives back, and the account of it while it goes on: both are folds of its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from v32.agent.events import CallResult, Completed, Durable, Rebased, Stopped, ToolsReturned
from v32.agent.limits import Progress, StopReason
from v32.model_runtime.messages import Completion, Usage

if TYPE_CHECKING:
    from v32.model_runtime.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Step:
    """One completion and, if it made calls, their results in call order."""

    completion: Completion
    results: tuple[CallResult, ...] = ()
    seconds: float = 0.0
    """Wall time of the calls."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to."""

    output: str
    """The answer; where the run stopped without one, what the model last wrote as content."""
    stop_reason: StopReason
    stop_detail: str
    messages: list[dict[str, Any]]
    """The whole session, OpenAI-shaped."""
    transcript: Transcript
    """The same as token ids, exactly as sampled."""
    usage: Usage
    steps: tuple[Step, ...]
    session_id: str
    data: Any = None
    """The answer as a value, where `response_format` asked for JSON and the run ended with an answer."""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """Every call of the run in order: id, name, arguments (None if malformed), outcome."""
        return [_describe(step, result) for step in self.steps for result in step.results]

    def to_record(self) -> dict[str, Any]:
        """The last line of `--json`."""
        return {
            "type": "result",
            "output": self.output,
            **({"data": self.data} if self.data is not None else {}),
            "stop_reason": str(self.stop_reason),
            "stop_detail": self.stop_detail,
            "usage": asdict(self.usage),
            "tool_calls": self.tool_calls,
            "turns": len(self.steps),
            "session_id": self.session_id,
        }


@dataclass(slots=True)
class Account:
    """The account of one run: what it has done so far. Adding an event costs the same however long the run is."""

    steps: list[Step] = field(default_factory=list)
    stopped: Stopped | None = None
    seconds: float = 0.0
    """Wall time of the run in this process."""
    _model_usage: Usage = field(default_factory=Usage)
    """Of every completion, summaries included."""
    _tool_seconds: float = 0.0
    _calls_made: int = 0
    _calls_run: int = 0
    _refused_turns: int = 0

    def apply(self, event: Durable) -> None:
        match event:
            case Completed(completion):
                self.stopped = None
                self.steps.append(Step(completion))
                self._model_usage += completion.usage
            case ToolsReturned(results, seconds):
                self.steps[-1] = replace(self.steps[-1], results=results, seconds=seconds)
                self._tool_seconds += seconds
                self._calls_made += len(results)
                self._calls_run += sum(result.was_run for result in results)
                self._refused_turns = self._refused_turns + 1 if all(r.was_refused for r in results) else 0
            case Rebased(usage=usage):
                self._model_usage += usage
            case Stopped():
                self.stopped = event

    @property
    def is_cancelled(self) -> bool:
        return self.stopped is not None and self.stopped.reason is StopReason.CANCELLED

    @property
    def progress(self) -> Progress:
        return Progress(len(self.steps), self._model_usage.completion_tokens, self._calls_run, self._refused_turns)

    @property
    def usage(self) -> Usage:
        """Tokens of every completion, calls made, seconds per part."""
        seconds = {**self._model_usage.seconds, "tools": self._tool_seconds, "total": self.seconds}
        return replace(self._model_usage, tool_calls=self._calls_made, seconds=seconds)

    @property
    def output(self) -> str:
        return self.steps[-1].completion.parsed.content if self.steps else ""


def _describe(step: Step, result: CallResult) -> dict[str, Any]:
    arguments: Mapping[str, Any] | None = None
    for call in step.completion.parsed.tool_calls:
        if call.id == result.call_id:
            arguments = call.arguments
    return {"id": result.call_id, "name": result.name, "arguments": arguments, "outcome": result.outcome}
