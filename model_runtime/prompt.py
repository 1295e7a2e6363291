"""A conversation that comes whole, as messages: rendered to token ids once. A `Transcript` is one that grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from v32.model_runtime.encoding import ChatTokenizer, encode_segments
from v32.model_runtime.errors import EncodingError
from v32.model_runtime.messages import ThinkingMode, ToolSpec


@dataclass(frozen=True, slots=True)
class Prompt:
    """What `ChatModel.complete` needs to know of a conversation."""

    ids: list[int]
    thinking_mode: ThinkingMode
    tools: tuple[ToolSpec, ...] = ()
    response_format: Mapping[str, Any] | None = None
    next_call_index: int = 0

    @property
    def is_models_turn(self) -> bool:
        return True

    @classmethod
    def from_messages(
        cls,
        tokenizer: ChatTokenizer,
        messages: Sequence[Mapping[str, Any]],
        thinking_mode: ThinkingMode,
        tools: Sequence[ToolSpec] = (),
        response_format: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """OpenAI-shaped messages; tools and format go into the system message, which is made where there is none.

        The last message is the user's or a tool's. Raises `EncodingError` with the index of the message at fault.
        """
        if not messages or messages[-1].get("role") not in ("user", "developer", "tool"):
            raise EncodingError("it is not the model's turn; let a message of the user or a tool result come last")
        segments = encode_segments(
            _with_offer(messages, tools, response_format), thinking_mode, dialect=tokenizer.dialect
        )
        return cls(
            ids=tokenizer.encode_segments(segments),
            thinking_mode=thinking_mode,
            tools=tuple(tools),
            response_format=response_format,
            next_call_index=sum(len(message.get("tool_calls") or ()) for message in messages),
        )


def _with_offer(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[ToolSpec], response_format: Mapping[str, Any] | None
) -> list[Mapping[str, Any]]:
    offer = {"tools": [tool.to_openai() for tool in tools], "response_format": response_format}
    offer = {key: value for key, value in offer.items() if value}
    if not offer:
        return list(messages)
    first, rest = messages[0], messages[1:]
    if first.get("role") == "system":
        return [{**first, **offer}, *rest]
    return [{"role": "system", "content": "", **offer}, *messages]
