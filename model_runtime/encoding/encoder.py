"""OpenAI-shaped messages in, the V3.2 prompt out: as one string, or as segments for injection-safe tokenisation.

`encode_messages` equals DeepSeek's own encoder byte for byte wherever that one accepts; README.md lists what is
accepted beyond it. The small `*_piece` functions are the format; the transcript builds on them too. Knows nothing of
token ids, and changes none of its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

from v32.model_runtime.encoding.dialect import V32, Dialect, Segment, join
from v32.model_runtime.errors import EncodingError
from v32.model_runtime.messages import ThinkingMode

Message = Mapping[str, Any]

_ASKING_ROLES = ("user", "developer")


def encode_messages(
    messages: Sequence[Message],
    thinking_mode: str,
    context: Sequence[Message] | None = None,
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
) -> str:
    """The prompt of `messages`, as they follow after `context` (which is not rendered again).

    `drop_thinking` is part of the official signature and changes nothing: reasoning before the last user message is
    never rendered, and developer messages are never deleted.
    """
    return join(encode_segments(messages, thinking_mode, context, drop_thinking, add_default_bos_token))


def encode_segments(
    messages: Sequence[Message],
    thinking_mode: str,
    context: Sequence[Message] | None = None,
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
    dialect: Dialect = V32,
) -> list[Segment]:
    """`encode_messages` before joining. Cost: linear in `messages`, independent of the length of `context`."""
    context = context or []
    rendering = _Rendering(check_thinking_mode(thinking_mode), dialect, offset=len(context))
    rendering.resume_after(context)
    if add_default_bos_token and not context:
        rendering.segments.append(Segment(dialect.bos, True))
    rendering.render(messages)
    return rendering.segments


def check_thinking_mode(thinking_mode: str) -> ThinkingMode:
    if thinking_mode not in get_args(ThinkingMode):
        raise EncodingError(f"thinking_mode is {thinking_mode!r}; choose 'thinking' or 'chat'")
    return cast(ThinkingMode, thinking_mode)


# ---- the format, piece by piece ------------------------------------------------------------------------------------


def system_piece(
    content: object, tools: Sequence[Message], response_format: object, dialect: Dialect = V32
) -> list[Segment]:
    """Instructions, then the tools block, then the response format; no role marker."""
    return [Segment(f"{content or ''}"), *_attachments(tools, response_format, dialect)]


def user_piece(content: object, dialect: Dialect = V32) -> list[Segment]:
    """A user turn up to and including the assistant marker; the think marker that follows depends on the position."""
    return [Segment(dialect.user, True), Segment(f"{content}"), Segment(dialect.assistant, True)]


def developer_piece(
    content: object, tools: Sequence[Message], response_format: object, dialect: Dialect = V32
) -> list[Segment]:
    """A user turn that carries tools and response format in front of its question."""
    return [
        Segment(dialect.user, True),
        *_attachments(tools, response_format, dialect),
        Segment(f"{dialect.developer_question}{content}"),
        Segment(dialect.assistant, True),
    ]


def answer_piece(
    content: object, calls: Sequence[tuple[str, Mapping[str, Any]]], dialect: Dialect = V32
) -> list[Segment]:
    """An assistant turn without its reasoning: content, calls, end of sentence."""
    return [Segment(f"{content or ''}"), *calls_piece(calls, dialect), Segment(dialect.eos, True)]


def calls_piece(calls: Sequence[tuple[str, Mapping[str, Any]]], dialect: Dialect = V32) -> list[Segment]:
    """The block of calls, each a name and its arguments; nothing when there are none."""
    if not calls:
        return []
    segments = [*dialect.split(dialect.block_open)]
    for name, arguments in calls:
        segments += _invoke(name, arguments, dialect)
    segments += dialect.split(dialect.block_close)
    return segments


def result_piece(
    content: object, *, is_first: bool, is_last: bool, think_open: bool, dialect: Dialect = V32
) -> list[Segment]:
    """One result of a batch; the last one closes the batch and hands over to the model."""
    opening = dialect.results_open if is_first else ""
    segments = [Segment(f"{opening}{dialect.result_open}{content}{dialect.result_close}")]
    if is_last:
        segments += [Segment(dialect.results_close), Segment(dialect.think(is_open=think_open), True)]
    return segments


def _attachments(tools: Sequence[Message], response_format: object, dialect: Dialect) -> list[Segment]:
    segments: list[Segment] = []
    if tools:
        schemas = "\n".join(_dump(tool["function"]) for tool in tools)
        segments += [Segment("\n\n"), *dialect.split(dialect.tools_head)]
        segments += [Segment(schemas), Segment(dialect.tools_tail)]
    if response_format:
        segments.append(Segment(f"\n\n{dialect.response_format_head}{_dump(response_format)}"))
    return segments


def _invoke(name: str, arguments: Mapping[str, Any], dialect: Dialect) -> list[Segment]:
    tag, _, rest = dialect.invoke_open("\0").partition("\0")
    segments = [*dialect.split(tag), Segment(f"{name}{rest}")]
    for position, (key, value) in enumerate(arguments.items()):
        segments += _parameter(key, value, dialect, separator="\n" if position else "")
    segments += [Segment("\n"), *dialect.split(f"{dialect.invoke_close}\n")]
    return segments


def _parameter(key: str, value: object, dialect: Dialect, separator: str) -> list[Segment]:
    is_string = isinstance(value, str)
    text = value if isinstance(value, str) else _dump(value)
    tag, _, rest = dialect.parameter_open("\0", is_string=is_string).partition("\0")
    opening = dialect.split(f"{separator}{tag}")
    return [*opening, Segment(f"{key}{rest}{text}"), *dialect.split(dialect.parameter_close)]


_dump = json.JSONEncoder(ensure_ascii=False).encode


# ---- messages to pieces --------------------------------------------------------------------------------------------


class _Rendering:
    """The walk over a conversation. `calls` and `answered` describe the batch of calls that awaits results."""

    def __init__(self, thinking_mode: ThinkingMode, dialect: Dialect, offset: int) -> None:
        self.segments: list[Segment] = []
        self._is_thinking = thinking_mode == "thinking"
        self._dialect = dialect
        self._offset = offset
        self._calls: Sequence[Message] = ()
        self._answered = 0

    def resume_after(self, context: Sequence[Message]) -> None:
        """Take up the batch of calls that stands at the end of `context`, without rendering anything."""
        index = len(context)
        while index and _role(context[index - 1]) == "tool":
            index -= 1
        if index and _role(context[index - 1]) == "assistant":
            self._calls = context[index - 1].get("tool_calls") or ()
            self._answered = len(context) - index

    def render(self, messages: Sequence[Message]) -> None:
        # A message of `context` is never the last to ask if one of `messages` asks; otherwise all come after it.
        last_question = max((i for i, message in enumerate(messages) if _role(message) in _ASKING_ROLES), default=-1)
        for index in self._in_call_order(messages):
            try:
                self._message(messages[index], thinks=self._is_thinking and index >= last_question)
            except (EncodingError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
                raise EncodingError(_reason(error), self._offset + index) from error

    def _message(self, message: Message, thinks: bool) -> None:
        role = _role(message)
        if role != "tool":
            self._calls, self._answered = (), 0
        if role == "tool":
            self._tool(message, thinks)
        elif role == "system":
            self.segments += system_piece(message.get("content"), *_extras(message), self._dialect)
        elif role == "user":
            self.segments += user_piece(message.get("content"), self._dialect)
            self._think(thinks)
        elif role == "developer":
            self._developer(message, thinks)
        elif role == "assistant":
            self._assistant(message, thinks)
        else:
            raise EncodingError(f"unknown role {role!r}; use system, developer, user, assistant or tool")

    def _developer(self, message: Message, thinks: bool) -> None:
        if not message.get("content"):
            raise EncodingError("a developer message needs content: the user's question")
        self.segments += developer_piece(message["content"], *_extras(message), self._dialect)
        self._think(thinks)

    def _assistant(self, message: Message, thinks: bool) -> None:
        reasoning, calls = message.get("reasoning_content"), message.get("tool_calls") or []
        if thinks:
            if not reasoning and not calls:
                raise EncodingError(
                    "in thinking mode an assistant message after the last user message needs reasoning_content or "
                    "tool_calls; add its reasoning_content or choose thinking_mode 'chat'"
                )
            self.segments.append(Segment(f"{reasoning or ''}"))
            self._think(False)
        named = [(_function_name(call), _arguments(call)) for call in calls]
        self.segments += answer_piece(message.get("content"), named, self._dialect)
        self._calls = calls

    def _tool(self, message: Message, thinks: bool) -> None:
        self._answered += 1
        if self._answered > len(self._calls):
            raise EncodingError(
                f"result {self._answered} has no call: the message before the results has {len(self._calls)} tool_calls"
            )
        self.segments += result_piece(
            message.get("content"),
            is_first=self._answered == 1,
            is_last=self._answered == len(self._calls),
            think_open=thinks,
            dialect=self._dialect,
        )

    def _think(self, is_open: bool) -> None:
        self.segments.append(Segment(self._dialect.think(is_open=is_open), True))

    def _in_call_order(self, messages: Sequence[Message]) -> Iterable[int]:
        """The indices of `messages`, results of one batch in the order of their calls where all ids match."""
        calls, start = self._calls, 0
        while start < len(messages):
            end = start
            while end < len(messages) and _role(messages[end]) == "tool":
                end += 1
            yield from _paired(messages, range(start, end), calls)
            if end < len(messages):
                yield end
                calls = (messages[end].get("tool_calls") or ()) if _role(messages[end]) == "assistant" else ()
            start = end + 1


def _paired(messages: Sequence[Message], batch: Sequence[int], calls: Sequence[Message]) -> Sequence[int]:
    """Whatever stands in place of ids or calls: what cannot be paired stays in its order."""
    calls = calls if isinstance(calls, Sequence) else ()
    named = enumerate(call.get("id") for call in calls if isinstance(call, Mapping))
    order = {one: position for position, one in named if isinstance(one, str)}
    ids = [messages[index].get("tool_call_id") for index in batch]
    if not all(isinstance(one, str) and one in order for one in ids) or len(set(ids)) < len(ids):
        return batch
    return sorted(batch, key=lambda index: order[messages[index]["tool_call_id"]])


def _role(message: Message) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _extras(message: Message) -> tuple[Sequence[Message], object]:
    return message.get("tools") or [], message.get("response_format")


def _function_name(call: Message) -> str:
    name = call["function"]["name"]
    if not isinstance(name, str):
        raise EncodingError(f"the name of a tool call is {name!r}; it must be a string")
    return name


def _arguments(call: Message) -> Mapping[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise EncodingError(f"arguments of the call of {function['name']!r} are not JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        kind = type(arguments).__name__
        raise EncodingError(f"arguments of the call of {function['name']!r} are a {kind}; they must be an object")
    return arguments


def _reason(error: Exception) -> str:
    if isinstance(error, EncodingError):
        return error.reason
    if isinstance(error, KeyError):
        return f"the key {error.args[0]!r} is missing"
    return f"{type(error).__name__}: {error}"
