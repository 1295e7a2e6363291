"""What passes between the agent and the model: tool specifications, calls, completions, deltas, usage.

Plain frozen data without behaviour that needs a model, a tokenizer or a tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ThinkingMode = Literal["thinking", "chat"]
FinishReason = Literal["stop", "tool_calls", "length", "cancelled"]
ToolChoice = Literal["auto", "none", "required"] | str
"""`auto`, `none`, `required`, or the name of the one tool that must be called."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it: name, description, JSON Schema of the arguments (draft 2020-12)."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def to_openai(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A well-formed call: `arguments` as parsed, `raw_arguments` as canonical JSON text of the same object."""

    id: str
    name: str
    arguments: dict[str, Any]
    raw_arguments: str

    def to_openai(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.raw_arguments}}


@dataclass(frozen=True, slots=True)
class MalformedToolCall:
    """A call that cannot be executed: what was written, why it fails, how the model may write it instead."""

    id: str
    name: str | None
    raw: str
    reason: str
    repair_hint: str


@dataclass(frozen=True, slots=True)
class ParsedCompletion:
    """One completion, taken apart. Every input character is in exactly one of the parts or in a deviation."""

    reasoning_content: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    malformed: list[MalformedToolCall] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    finished: bool = False
    """True when the end-of-sentence marker was seen."""


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """The name of call `index` is complete."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArgumentsDelta:
    """A piece of the JSON text of the arguments of call `index`; the pieces concatenate to `raw_arguments`."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallFinished:
    index: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolCallMalformed:
    index: int
    call: MalformedToolCall


Delta = ReasoningDelta | ContentDelta | ToolCallStarted | ToolCallArgumentsDelta | ToolCallFinished | ToolCallMalformed


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts and seconds of one completion, or their sum over a run.

    prompt_tokens = cached_tokens + prefilled_tokens; reasoning_tokens are part of completion_tokens.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    forced_tokens: int = 0
    """Completion tokens that the grammar left no choice about (jump-forward)."""
    ahead_tokens: int = 0
    """Of the cached tokens those that were prefilled while the user was silent."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Tokens that were guessed and checked, and those of them that the model drew as well."""
    tool_calls: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds per part: `prefill`, `decode`, `tools`, `total`."""

    @property
    def acceptance_rate(self) -> float | None:
        """The share of drafted tokens that became tokens; None without drafts."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    def __add__(self, other: Usage) -> Usage:
        counts = [name for name in self.__dataclass_fields__ if name != "seconds"]
        parts = self.seconds.keys() | other.seconds.keys()
        return Usage(
            **{name: getattr(self, name) + getattr(other, name) for name in counts},
            seconds={part: self.seconds.get(part, 0.0) + other.seconds.get(part, 0.0) for part in sorted(parts)},
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model produced in one go: the sampled ids exactly as sampled, and their parse."""

    token_ids: tuple[int, ...]
    parsed: ParsedCompletion
    finish_reason: FinishReason
    usage: Usage = Usage()
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The one result of one call, as text for the model."""

    tool_call_id: str
    content: str
