"""What a completion has been found to hold so far: text, calls and deviations go in, deltas and the whole come out."""

from __future__ import annotations

from v32.model_runtime.encoding.call_draft import CallDraft
from v32.model_runtime.messages import (
    ContentDelta,
    Delta,
    MalformedToolCall,
    ParsedCompletion,
    ReasoningDelta,
    ToolCall,
    ToolCallArgumentsDelta,
    ToolCallFinished,
    ToolCallMalformed,
    ToolCallStarted,
)


class Parts:
    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._malformed: list[MalformedToolCall] = []
        self._deviations: list[str] = []
        self._deltas: list[Delta] = []

    @property
    def num_calls(self) -> int:
        return len(self._calls) + len(self._malformed)

    def reason(self, text: str) -> None:
        self._reasoning.append(text)
        self._deltas.append(ReasoningDelta(text))

    def say(self, text: str) -> None:
        self._content.append(text)
        self._deltas.append(ContentDelta(text))

    def deviate(self, what: str, literal: str = "") -> None:
        """Something was written differently, and understood."""
        self._deviations.append(f"{what}: {literal!r}" if literal else what)

    def start_call(self, draft: CallDraft, name: str) -> None:
        draft.name = name
        self._deltas.append(ToolCallStarted(draft.index, name))

    def grow_call(self, draft: CallDraft, json_text: str) -> None:
        self._deltas.append(ToolCallArgumentsDelta(draft.index, json_text))

    def end_call(self, draft: CallDraft) -> None:
        """The draft becomes a call, or a malformed one."""
        if draft.failure is not None:
            malformed = draft.malformed()
            self._malformed.append(malformed)
            self._deltas.append(ToolCallMalformed(draft.index, malformed))
            return
        if rest := draft.close():
            self.grow_call(draft, rest)
        call = draft.finished()
        self._calls.append(call)
        self._deltas.append(ToolCallFinished(draft.index, call))

    def drain(self) -> list[Delta]:
        """The deltas since the last time."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def whole(self, *, finished: bool) -> ParsedCompletion:
        return ParsedCompletion(
            reasoning_content="".join(self._reasoning),
            content="".join(self._content),
            tool_calls=self._calls,
            malformed=self._malformed,
            deviations=self._deviations,
            finished=finished,
        )
