"""A request of the chat completions API, checked: JSON in, what `ChatModel.complete` takes out.

What would change the answer and is not supported is refused by name; what does not concern the model (`user`, `store`,
`metadata`, ...) is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from v32.model_runtime.chat import ChatModel
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.messages import ThinkingMode, ToolChoice, ToolSpec
from v32.model_runtime.prompt import Prompt
from v32.model_runtime.response_format import answer_schema


class RequestError(ValueError):
    """A request that cannot be answered; the message says which field and what would."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Function(_Open):
    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})


class _Tool(_Open):
    type: Literal["function"] = "function"
    function: _Function


class _Named(_Open):
    name: str


class _Choice(_Open):
    type: Literal["function"] = "function"
    function: _Named


class _StreamOptions(_Open):
    include_usage: bool = False


class _Thinking(_Open):
    type: Literal["enabled", "disabled"]


class ChatRequest(_Open):
    """The fields that are understood. `thinking` is DeepSeek's own: `{"type": "disabled"}` answers at once."""

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[_Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | _Choice = "auto"
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    thinking: _Thinking | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    n: Literal[1] | None = None
    stop: Literal[""] | list[Any] | None = Field(default=None, max_length=0)
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @classmethod
    def read(cls, body: bytes) -> ChatRequest:
        """Raises `RequestError` naming every field that is wrong."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise RequestError("; ".join(_words(problem) for problem in error.errors(include_url=False))) from error

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def choice(self) -> ToolChoice:
        return self.tool_choice.function.name if isinstance(self.tool_choice, _Choice) else self.tool_choice

    def prompt(self, model: ChatModel) -> Prompt:
        """Raises `ToolsNotSupportedError`, `EncodingError`, `UnsupportedSchemaError`."""
        tools = [
            ToolSpec(tool.function.name, tool.function.description, tool.function.parameters)
            for tool in self.tools or ()
        ]
        if tools or any(map(_has_tools, self.messages)):
            model.check_tools_supported()
        messages = [_flat(message, position) for position, message in enumerate(self.messages)]
        mode = self._thinking_mode(model)
        return Prompt.from_messages(model.tokenizer, messages, mode, tools, answer_schema(self.response_format))

    def sampling(self, model: ChatModel) -> SamplingParams:
        """The model's own parameters where the request has none."""
        own = model.sampling
        return SamplingParams(
            temperature=own.temperature if self.temperature is None else self.temperature,
            top_p=own.top_p if self.top_p is None else self.top_p,
            seed=self.seed,
            max_new_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
        )

    def _thinking_mode(self, model: ChatModel) -> ThinkingMode:
        if self.thinking is None:
            return model.thinking_mode
        return "thinking" if self.thinking.type == "enabled" else "chat"


def _has_tools(message: Mapping[str, Any]) -> bool:
    """Tools are also what a message offers itself, as DeepSeek's encoder reads it, and calls that were made before."""
    return message.get("role") == "tool" or bool(message.get("tools") or message.get("tool_calls"))


def _flat(message: Mapping[str, Any], position: int) -> Mapping[str, Any]:
    """A message whose content is one text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = [text for part in content if isinstance(part, Mapping) and isinstance(text := part.get("text"), str)]
    if len(texts) < len(content):
        raise RequestError(f"messages.{position}.content has a part that is no text; this model reads text only")
    return {**message, "content": "".join(texts)}


def _words(problem: Mapping[str, Any]) -> str:
    field = ".".join(map(str, problem["loc"])) or "body"
    return f"{field}: {problem['msg']}"
