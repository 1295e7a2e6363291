"""What stands before the first message of a session: instructions, role, offered tools; and how a journal keeps it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from v32.agent.errors import JournalError
from v32.model_runtime.errors import EncodingError
from v32.model_runtime.messages import ToolSpec
from v32.model_runtime.transcript import Transcript
from v32.tools.validation import Validator

if TYPE_CHECKING:
    from v32.agent.agent import Agent
    from v32.model_runtime.chat import ChatModel

Role = Literal["system", "developer"]


@dataclass(frozen=True)
class Prelude:
    """Fixed for the life of a session: what the model was told at its start."""

    instructions: str | None = None
    role: Role = "system"
    tools: tuple[ToolSpec, ...] = ()
    response_format: Mapping[str, Any] | None = None
    """The JSON Schema of every answer; None: text."""

    @cached_property
    def answer_validator(self) -> Validator | None:
        """Has the last word about every answer; `ToolDefinitionError` for a `response_format` that is no schema."""
        return None if self.response_format is None else Validator(self.response_format, "response_format")

    @property
    def tool_names(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.tools)

    def start_transcript(self, model: ChatModel, first_call_index: int = 0) -> Transcript:
        if self.tools:
            model.check_tools_supported()
        return Transcript(
            model.tokenizer,
            instructions=self.instructions,
            tools=self.tools,
            thinking_mode=model.thinking_mode,
            role=self.role,
            response_format=self.response_format,
            first_call_index=first_call_index,
        )

    def to_header(self, model: ChatModel) -> dict[str, Any]:
        """The fields of a journal's header that let another process start the same session."""
        return {
            "instructions": self.instructions,
            "role": self.role,
            "tools": [tool.to_openai()["function"] for tool in self.tools],
            "response_format": self.response_format,
            "model": model.describe(),
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any], agent: Agent, path: str | os.PathLike[str]) -> Prelude:
        """The prelude of a journal; `JournalError` if this agent cannot go on with it."""
        try:
            tools = tuple(ToolSpec(**tool) for tool in header["tools"])
            prelude = cls(header["instructions"], header["role"], tools, header.get("response_format"))
            model = dict(header["model"])
            if not isinstance(header["session_id"], str):
                raise TypeError(f"session_id is {header['session_id']!r}")
            prelude.start_transcript(agent.model)  # which looks at what the fields hold
        except (AttributeError, KeyError, TypeError, ValueError, EncodingError) as error:
            raise JournalError(f"{path}, line 1 is no header: {error!r}; restore the file from a copy") from error
        _check_model(model, agent.model.describe(), path)
        missing = [str(name) for name in prelude.tool_names if name not in agent.prelude.tool_names]
        if missing:
            raise JournalError(f"{path} was written with tools that are missing here: {', '.join(missing)}; pass them")
        return prelude


def _check_model(then: Mapping[str, Any], now: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    for part in ("tokenizer", "fingerprint", "thinking_mode"):
        if then.get(part) != now.get(part):
            raise JournalError(
                f"{path} was written with another model ({part} {then.get(part)!r}, here {now.get(part)!r}); "
                "load the model that it names in its first line"
            )
