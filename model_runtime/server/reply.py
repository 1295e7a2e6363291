"""Replies in the shapes of the chat completions API: deltas and completions in, JSON-able objects out."""

from __future__ import annotations

import time
import uuid
from typing import Any

from v32.model_runtime.messages import (
    Completion,
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArgumentsDelta,
    ToolCallStarted,
    Usage,
)


class Reply:
    """One reply: the same id, time and model in all its parts."""

    def __init__(self, model: str, first_call_index: int) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._first_call_index = first_call_index

    def whole(self, completion: Completion) -> dict[str, Any]:
        parsed = completion.parsed
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content or None}
        if parsed.reasoning_content:
            message["reasoning_content"] = parsed.reasoning_content
        if parsed.tool_calls:
            message["tool_calls"] = [call.to_openai() for call in parsed.tool_calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(completion)}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage_of(completion.usage)}

    def opening(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, delta: Delta) -> dict[str, Any] | None:
        """None for a delta that says nothing new to a client."""
        match delta:
            case ReasoningDelta(text):
                return self._chunk({"reasoning_content": text})
            case ContentDelta(text):
                return self._chunk({"content": text})
            case ToolCallStarted(index, name):
                call_id = f"call_{self._first_call_index + index}"
                function = {"name": name, "arguments": ""}
                return self._call({"index": index, "id": call_id, "type": "function", "function": function})
            case ToolCallArgumentsDelta(index, text):
                return self._call({"index": index, "function": {"arguments": text}})
        return None

    def closing(self, completion: Completion) -> dict[str, Any]:
        return self._chunk({}, finish_reason(completion))

    def usage(self, completion: Completion) -> dict[str, Any]:
        return {**self._chunk({}), "choices": [], "usage": usage_of(completion.usage)}

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        return self._chunk({"tool_calls": [call]})

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


def finish_reason(completion: Completion) -> str:
    """`stop` also where every call was malformed: a client would wait for calls that do not come."""
    if completion.finish_reason == "tool_calls" and not completion.parsed.tool_calls:
        return "stop"
    return completion.finish_reason


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
