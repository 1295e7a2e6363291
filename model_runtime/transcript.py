"""A conversation as token ids that are never rendered again.

Enters: user texts, completions as they were sampled, results of calls; leaves: the ids to continue from. Only what the
runtime itself writes is tokenised, once, when it is appended. Knows nothing of models, tools or engines.

    ids      = head <User> ... <Assistant> │ <think> completion results <think> completion ...
    settled  =                             │ </think> the same, without reasoning, </think> instead of <think>
                                           turn_start

A new user message replaces what stands right of `turn_start` by its settled form (rebase), as the official encoder
does; left of it nothing changes any more, so an append costs what is appended, and a rebase costs the last turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

from v32.model_runtime.encoding.dialect import Segment
from v32.model_runtime.encoding.dsml import tags_of
from v32.model_runtime.encoding.encoder import (
    check_thinking_mode,
    developer_piece,
    result_piece,
    system_piece,
    user_piece,
)
from v32.model_runtime.encoding.tokenizer import ChatTokenizer, Detokenizer
from v32.model_runtime.errors import EncodingError
from v32.model_runtime.messages import Completion, MalformedToolCall, ParsedCompletion, ToolCall, ToolResult, ToolSpec

Role = Literal["system", "developer"]
Entry = str | Completion | tuple[ToolResult, ...]
"""What was said: by the user, by the model, by the tools."""


class Transcript:
    """Alternates: `append_user`, then `append_completion`, then `append_results` if calls were made, and so on."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        instructions: str | None = None,
        tools: Sequence[ToolSpec] = (),
        thinking_mode: str = "thinking",
        role: Role = "system",
        response_format: Mapping[str, Any] | None = None,
        first_call_index: int = 0,
    ) -> None:
        """With role "developer", tools, response format and instructions go into the first user message.

        `first_call_index`: where the numbers of the calls begin, for a conversation that goes on with another's.
        """
        if role not in get_args(Role):
            raise EncodingError(f"role is {role!r}; choose 'system' or 'developer'")
        self.tokenizer = tokenizer
        self.thinking_mode = check_thinking_mode(thinking_mode)
        self.instructions = instructions
        self.tools = tuple(tools)
        self.role: Role = role
        self.response_format = dict(response_format) if response_format else None
        self._entries: list[Entry] = []
        self._first_call_index = self._num_calls = first_call_index
        self._pending: list[str] = []
        """Ids of the calls that await their results, in the order of the calls."""
        self._is_models_turn = False
        self._lacks_eos = False
        """The last completion was cut off; its turn is closed when something follows."""
        self._ids = tokenizer.encode_segments(self._head())
        self._turn_start = len(self._ids)
        self._settled: list[int] = []

    # ---- what it says ----------------------------------------------------------------------------------------------

    @property
    def ids(self) -> list[int]:
        """The prompt to continue from, exactly as it was said and sampled."""
        return self._ids.copy()

    def __len__(self) -> int:
        """The number of ids, without copying them."""
        return len(self._ids)

    @property
    def is_models_turn(self) -> bool:
        """True after a user message and after the results of calls."""
        return self._is_models_turn

    @property
    def pending_calls(self) -> tuple[str, ...]:
        """Ids of the calls that await their results."""
        return tuple(self._pending)

    @property
    def next_call_index(self) -> int:
        """The number of the next call; malformed ones count."""
        return self._num_calls

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What was said, in order; appended to a new transcript it gives the same ids."""
        return tuple(self._entries)

    def settled_ids(self) -> list[int]:
        """The ids of all this as the next user message will see it; for prefilling while the user thinks."""
        return [*self._ids[: self._turn_start], *self._settled, *self._missing_eos()]

    # ---- how it grows ----------------------------------------------------------------------------------------------

    def append_user(self, text: str) -> None:
        """A user message. Reasoning before it is dropped; what was sampled otherwise stays as it was sampled."""
        if self._pending:
            raise EncodingError(
                f"the calls {', '.join(self._pending)} await their results; append those before a user message",
                len(self._entries),
            )
        ids = self.tokenizer.encode_segments(self._user(text))
        self._rebase()
        self._ids += ids
        self._turn_start = len(self._ids)
        self._ids.append(self._think_id)
        self._settled = [self.tokenizer.think_close_id]
        self._entries.append(text)
        self._is_models_turn = True

    def append_completion(self, completion: Completion) -> None:
        """The ids exactly as sampled.

        An end of sentence that is missing is added: at once if the model stopped by itself, and if it was cut off, when
        something follows. So a cut completion stands last as it was sampled.
        """
        if not self._is_models_turn:
            raise EncodingError(
                "it is not the model's turn; append a user message or the results of its calls first",
                len(self._entries),
            )
        ids = list(completion.token_ids)
        self._ids += ids
        self._settled += self._answer(ids)
        self._lacks_eos = self.tokenizer.eos_id not in ids[-1:]
        if completion.finish_reason in ("stop", "tool_calls"):
            self._close_turn()
        self._pending = [call.id for call in calls_in_order(completion.parsed)]
        self._num_calls += len(self._pending)
        self._entries.append(completion)
        self._is_models_turn = False

    def append_results(self, results: Sequence[ToolResult]) -> None:
        """Exactly one result for every call of the last completion, malformed ones included, in any order."""
        ordered = self._in_call_order(results)
        self._close_turn()
        segments: list[Segment] = []
        for position, result in enumerate(ordered):
            segments += result_piece(
                result.content,
                is_first=position == 0,
                is_last=position == len(ordered) - 1,
                think_open=False,
                dialect=self.tokenizer.dialect,
            )
        ids = self.tokenizer.encode_segments(segments)
        self._settled += ids
        self._ids += ids[:-1]
        self._ids.append(self._think_id)
        self._entries.append(tuple(ordered))
        self._pending = []
        self._is_models_turn = True

    def fork(self) -> Transcript:
        """An independent copy."""
        copy = object.__new__(Transcript)
        copy.__dict__.update(self.__dict__)
        copy._ids, copy._settled = self._ids.copy(), self._settled.copy()
        copy._entries, copy._pending = self._entries.copy(), self._pending.copy()
        return copy

    # ---- other forms -----------------------------------------------------------------------------------------------

    def to_messages(self) -> list[dict[str, Any]]:
        """OpenAI-shaped, with all reasoning for the record, and `malformed_tool_calls` beside `tool_calls` if any."""
        messages: list[dict[str, Any]] = []
        if self.role == "system" and (self.instructions or self.tools or self.response_format):
            messages.append({"role": "system", "content": self.instructions or "", **self._attachments()})
        for position, entry in enumerate(self._entries):
            if isinstance(entry, str):
                messages.append(self._user_message(entry, position))
            elif isinstance(entry, Completion):
                messages.append(_assistant_message(entry.parsed))
            else:
                messages += [{"role": "tool", "tool_call_id": r.tool_call_id, "content": r.content} for r in entry]
        return messages

    def extend(self, entries: Iterable[Entry]) -> None:
        """Append what was said elsewhere."""
        for entry in entries:
            if isinstance(entry, str):
                self.append_user(entry)
            elif isinstance(entry, Completion):
                self.append_completion(entry)
            else:
                self.append_results(entry)

    # ---- pieces ----------------------------------------------------------------------------------------------------

    @property
    def _think_id(self) -> int:
        is_thinking = self.thinking_mode == "thinking"
        return self.tokenizer.think_open_id if is_thinking else self.tokenizer.think_close_id

    def _head(self) -> list[Segment]:
        dialect = self.tokenizer.dialect
        segments = [Segment(dialect.bos, True)]
        if self.role == "system":
            segments += system_piece(self.instructions, self._openai_tools(), self.response_format, dialect)
        return segments

    def _user(self, text: str) -> list[Segment]:
        if not isinstance(text, str):
            raise EncodingError(f"a user message is a string, not {type(text).__name__}", len(self._entries))
        if not self._is_developers(len(self._entries)):
            return user_piece(text, self.tokenizer.dialect)
        if not text:
            raise EncodingError("a developer message needs content: the user's question", 0)
        return developer_piece(
            self._with_instructions(text), self._openai_tools(), self.response_format, self.tokenizer.dialect
        )

    def _user_message(self, text: str, position: int) -> dict[str, Any]:
        if not self._is_developers(position):
            return {"role": "user", "content": text}
        return {"role": "developer", "content": self._with_instructions(text), **self._attachments()}

    def _is_developers(self, position: int) -> bool:
        return self.role == "developer" and position == 0

    def _with_instructions(self, text: str) -> str:
        return f"{text}\n\n{self.instructions}" if self.instructions else text

    def _openai_tools(self) -> list[dict[str, Any]]:
        return [tool.to_openai() for tool in self.tools]

    def _attachments(self) -> dict[str, Any]:
        attachments = {"tools": self._openai_tools(), "response_format": self.response_format}
        return {key: value for key, value in attachments.items() if value}

    def _rebase(self) -> None:
        """The last turn takes its settled form."""
        self._close_turn()
        del self._ids[self._turn_start :]
        self._ids += self._settled

    def _missing_eos(self) -> list[int]:
        return [self.tokenizer.eos_id] if self._lacks_eos else []

    def _close_turn(self) -> None:
        self._ids += self._missing_eos()
        self._settled += self._missing_eos()
        self._lacks_eos = False

    def _answer(self, ids: list[int]) -> list[int]:
        """A completion without its reasoning."""
        if self.thinking_mode == "chat":
            return ids
        if self.tokenizer.think_close_id in ids:
            return ids[ids.index(self.tokenizer.think_close_id) + 1 :]
        return self._calls_in_reasoning(ids)

    def _calls_in_reasoning(self, ids: list[int]) -> list[int]:
        """The thinking was never closed: what stays is what follows the opening of a call, if there is one."""
        detokenizer = Detokenizer(self.tokenizer)
        pieces = [detokenizer.feed(token_id) for token_id in ids]
        start = tags_of(self.tokenizer.dialect, with_markers=False).first_opening("".join(pieces))
        if start is None:
            return ids[-1:] if ids[-1:] == [self.tokenizer.eos_id] else []
        position = end = 0
        while end <= start:
            end += len(pieces[position])
            position += 1
        # The tag may begin inside a token, after a line break; of that token only the tag's part is kept.
        split = pieces[position - 1][len(pieces[position - 1]) - (end - start) :]
        kept = ids[position - 1 : position] if split == pieces[position - 1] else self.tokenizer.encode_text(split)
        return [*self.tokenizer.encode_text("\n\n"), *kept, *ids[position:]]

    def _in_call_order(self, results: Sequence[ToolResult]) -> list[ToolResult]:
        by_id = {result.tool_call_id: result for result in results}
        if len(results) != len(by_id) or set(by_id) != set(self._pending) or not self._pending:
            raise EncodingError(
                f"results for {[result.tool_call_id for result in results]}, but the calls are {self._pending}; "
                "append exactly one result for every call",
                len(self._entries),
            )
        return [by_id[call_id] for call_id in self._pending]


def calls_in_order(parsed: ParsedCompletion) -> list[ToolCall | MalformedToolCall]:
    """The calls as they were written, malformed ones in their places."""
    calls: list[ToolCall | MalformedToolCall] = [*parsed.tool_calls, *parsed.malformed]
    numbers = [call.id.removeprefix("call_") for call in calls]
    if not all(map(str.isdecimal, numbers)):
        return calls
    return sorted(calls, key=lambda call: int(call.id.removeprefix("call_")))


def _assistant_message(parsed: ParsedCompletion) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
    if parsed.reasoning_content:
        message["reasoning_content"] = parsed.reasoning_content
    if parsed.tool_calls:
        message["tool_calls"] = [call.to_openai() for call in parsed.tool_calls]
    if parsed.malformed:
        message["malformed_tool_calls"] = [asdict(call) for call in parsed.malformed]
    return message
