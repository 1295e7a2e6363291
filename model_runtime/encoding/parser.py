"""The one parser of completions: reasoning, content and tool calls, from text as it arrives.

Enters: the completion's text in pieces of any size, and, where token ids are known, its control markers; leaves:
deltas, and at the end a ParsedCompletion. Any text has a parse; what is wrong with it is a deviation (still
understood) or a MalformedToolCall (never executed). Knows nothing of token ids, tools or schemas.

    text ──block opens──▶ between ──invoke──▶ invoke_head ──▶ body ◀──▶ parameter_head ──▶ value
     ▲                       │ ▲                                │              │             │
     └──────block closes─────┘ └────────invoke closes───────────┴── skip ◀─────┴─────────────┘

Each state is a method that consumes what is certain and returns whether the next state may go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from v32.model_runtime.encoding.call_draft import CallDraft, read_json
from v32.model_runtime.encoding.dialect import V32, Dialect
from v32.model_runtime.encoding.dsml import Finder, Tag, tags_of
from v32.model_runtime.encoding.encoder import check_thinking_mode
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


def parse_completion(text: str, thinking_mode: str, first_call_index: int = 0) -> ParsedCompletion:
    """`text` is what follows the prompt's `<think>` or `</think>`."""
    parser = CompletionParser(thinking_mode, first_call_index)
    parser.feed(text)
    return parser.finish()


class CompletionParser:
    """`feed` as text comes, `close` when it ends, `finish` for the whole.

    Without token ids the markers (`</think>`, end of sentence, ...) are recognised in the text. With `ids_known` only
    `feed_control` brings them, and ordinary tokens that merely spell a marker stay text.
    """

    def __init__(
        self, thinking_mode: str, first_call_index: int = 0, *, ids_known: bool = False, dialect: Dialect = V32
    ) -> None:
        self._is_reasoning = check_thinking_mode(thinking_mode) == "thinking"
        self._first_call_index = first_call_index
        self._dialect = dialect
        self._tags = tags_of(dialect, with_markers=not ids_known)

        self._buffer = ""
        self._pos = 0
        self._is_last = False
        """The end of the buffer is the end of whatever stands there."""
        self._is_closed = False
        self._state: Callable[[], bool] = self._text
        self._parts: list[str] = []
        """What the present state has read so far: a gap, a head, a value."""

        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._malformed: list[MalformedToolCall] = []
        self._deviations: list[str] = []
        self._deltas: list[Delta] = []
        self._trailing: list[str] = []
        self._finished = False
        self._has_said = False
        """Anything but white space."""

        self._calls_in_block: int | None = None
        """None outside of a block."""
        self._space_after_calls: list[str] | None = None
        """The white space after a call or block, while nothing else has followed it."""
        self._draft: CallDraft | None = None
        self._marker = ""
        """How the tag of the present parameter is marked; its closing tag is marked likewise or exactly."""
        self._value_end = self._tags.value("")
        self._key = ""
        self._is_string = True
        self._tag_space: list[str] = []
        self._after_tag: Callable[[], None] = self._enter_text

    # ---- the public side -------------------------------------------------------------------------------------------

    def feed(self, text: str) -> list[Delta]:
        """Ordinary text. What may be the beginning of a tag is held back, at most `dsml.HOLD_BACK` characters."""
        if self._is_closed:
            raise RuntimeError("feed after close; start a new CompletionParser for each completion")
        self._buffer = self._buffer[self._pos :] + text if self._pos < len(self._buffer) else text
        self._pos = 0
        self._run()
        return self._drain()

    def feed_control(self, marker: str) -> list[Delta]:
        """One control token. It ends whatever tag was being spelled before it."""
        if marker == self._dialect.dsml:
            return self.feed(marker)
        deltas = self.feed("")
        self._run(is_last=True)
        if marker == self._dialect.eos and not self._finished:
            self._end()
        elif self._state == self._text and marker not in (self._dialect.user, self._dialect.assistant):
            self._read_marker(marker)
        else:
            return deltas + self._drain() + self.feed(marker)
        return deltas + self._drain()

    def close(self) -> list[Delta]:
        """No more text follows: the deltas of what was held back."""
        if not self._is_closed:
            self._run(is_last=True)
            if not self._finished:
                self._close_what_is_open()
            if trailing := "".join(self._trailing):
                self._deviate("text after the end", trailing)
            self._is_closed = True
        return self._drain()

    def finish(self) -> ParsedCompletion:
        """The whole completion; closes first, where that has not been done."""
        self.close()
        return ParsedCompletion(
            reasoning_content="".join(self._reasoning),
            content="".join(self._content),
            tool_calls=self._calls,
            malformed=self._malformed,
            deviations=self._deviations,
            finished=self._finished,
        )

    # ---- reading ---------------------------------------------------------------------------------------------------

    def _run(self, *, is_last: bool = False) -> None:
        self._is_last = is_last
        while self._state():
            pass
        self._is_last = False

    def _drain(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _find(self, finder: Finder) -> tuple[re.Match[str] | None, int]:
        """The next match, and where the text before it ends; without a match, where certain text ends."""
        return finder.find(self._buffer, self._pos, is_last=self._is_last)

    def _take(self, end: int) -> str:
        """Consume up to `end`. What is consumed while a call is open is part of its raw text."""
        piece = self._buffer[self._pos : end]
        self._pos = end
        if self._draft is not None and piece:
            self._draft.raw.append(piece)
        return piece

    def _take_tag(self, tag: Tag) -> None:
        if not tag.is_exact:
            self._deviate("tag spelled", tag.text)
        self._take(self._pos + len(tag.text))

    def _is_end(self, match: re.Match[str]) -> bool:
        """Consume the end-of-sentence marker, if it is that."""
        if match[0] != self._dialect.eos:
            return False
        self._end(match.end())
        return True

    def _deviate(self, what: str, literal: str = "") -> None:
        self._deviations.append(f"{what}: {literal!r}" if literal else what)

    # ---- outside of a block ----------------------------------------------------------------------------------------

    def _text(self) -> bool:
        match, end = self._find(self._tags.text)
        if match is None:
            text = self._take(end)
            self._say_last(text) if self._is_last else self._say(text)
            return False
        if match["sure"]:
            self._read_text_marker(match)
        else:
            self._read_tag_in_text(self._tags.read(match[0]), end)
        return True

    def _read_text_marker(self, match: re.Match[str]) -> None:
        text = self._take(match.start())
        if match[0] == self._dialect.eos:
            self._say(text)
            self._end(match.end())
        else:
            self._say(text)
            self._read_marker(self._take(match.end()))

    def _read_marker(self, marker: str) -> None:
        if marker == self._dialect.think_close and self._is_reasoning:
            self._is_reasoning = False
        elif marker == self._dialect.think_open and not self._has_said:
            self._deviate("the completion begins with", marker)
            self._is_reasoning = True
        else:
            self._deviate("stray marker", marker)

    def _read_tag_in_text(self, tag: Tag, start: int) -> None:
        if tag.is_close:
            self._say(self._take(start))
            self._deviate("stray closing tag", tag.text)
            self._take_tag(tag)
            self._expect_tag_end(self._enter_text)
            return
        self._say(self._take(start - _newlines_before(self._buffer, self._pos, start)))
        self._leave_text(self._take(start))
        if tag.kind == "calls":
            self._take_tag(tag)
            self._calls_in_block = 0
            self._expect_tag_end(self._enter_block)
        else:
            self._deviate("a call without a block around it")
            self._open_call(tag)

    def _leave_text(self, newlines: str) -> None:
        """`newlines` stand before an opening tag and belong to it."""
        if self._space_after_calls is not None:
            self._space_after_calls.append(newlines)
            self._flag_space_after_calls()
            self._deviate("another block of calls")
        elif newlines != "\n\n":
            self._deviate("not two newlines before the calls", newlines)
        if self._is_reasoning:
            self._is_reasoning = False
            self._deviate("a call ended the thinking; </think> is missing")

    def _say(self, text: str) -> None:
        """Emit text as reasoning or content."""
        if self._space_after_calls is not None:
            text = self._skip_space_after_calls(text)
        if not text:
            return
        self._has_said = self._has_said or not text.isspace()
        if self._is_reasoning:
            self._reasoning.append(text)
            self._deltas.append(ReasoningDelta(text))
        else:
            self._content.append(text)
            self._deltas.append(ContentDelta(text))

    def _say_last(self, text: str) -> None:
        """Emit the last text; a tag that was only begun is not content."""
        end = self._tags.broken_end(text)
        self._say(text[:end])
        if text[end:]:
            self._deviate("a tag that was only begun", text[end:])

    def _skip_space_after_calls(self, text: str) -> str:
        assert self._space_after_calls is not None
        rest = text.lstrip()
        self._space_after_calls.append(text[: len(text) - len(rest)])
        if rest:
            self._flag_space_after_calls()
            self._deviate("text after the calls")
        return rest

    def _flag_space_after_calls(self) -> None:
        space = "".join(self._space_after_calls or [])
        self._space_after_calls = None
        if space:
            self._deviate("white space after the calls", space)

    def _enter_text(self) -> None:
        self._calls_in_block = None
        self._state = self._text

    def _enter_text_after_calls(self) -> None:
        self._space_after_calls = []
        self._enter_text()

    # ---- inside a block, between calls -----------------------------------------------------------------------------

    def _enter_block(self) -> None:
        self._parts = []
        self._state = self._between

    def _between(self) -> bool:
        match, end = self._find(self._tags.block)
        if self._calls_in_block and self._buffer[self._pos : end].strip():
            return self._abandon_block()
        self._parts.append(self._take(end))
        if match is None:
            return False
        if not self._is_end(match):
            self._read_tag_in_block(self._tags.read(match[0]))
        return True

    def _abandon_block(self) -> bool:
        """Text where a tag should be, after a call: the block was left without being closed."""
        self._deviate("the block of calls is not closed")
        self._enter_text_after_calls()
        self._space_after_calls = self._parts
        return True

    def _read_tag_in_block(self, tag: Tag) -> None:
        if tag.kind == "calls" and tag.is_close:
            self._take_tag(tag)
            self._expect_tag_end(self._leave_block)
        elif tag.kind == "calls" or tag.is_close:
            self._deviate("stray tag in the block", tag.text)
            self._take_tag(tag)
            self._expect_tag_end(self._resume_block)
        else:
            self._flag_gap("before a call")
            self._open_call(tag)

    def _resume_block(self) -> None:
        self._state = self._between

    def _leave_block(self) -> None:
        if self._calls_in_block:
            self._flag_gap("before the end of the block")
        else:
            self._close_empty_block()
        self._enter_text_after_calls()

    def _flag_gap(self, where: str) -> None:
        gap = "".join(self._parts)
        if gap != "\n":
            self._deviate(f"{'text' if gap.strip() else 'not one newline'} {where}", gap)

    def _close_empty_block(self) -> None:
        text = "".join(self._parts)
        if not text.strip():
            self._deviate("a block without calls", text)
            return
        self._draft = self._new_draft()
        self._draft.raw.append(text)
        self._fail("the block holds text where calls should be", _FORM)
        self._close_call()

    # ---- one call --------------------------------------------------------------------------------------------------

    def _new_draft(self) -> CallDraft:
        self._has_said = True
        index = len(self._calls) + len(self._malformed)
        return CallDraft(index, f"call_{self._first_call_index + index}")

    def _current(self) -> CallDraft:
        assert self._draft is not None
        return self._draft

    def _open_call(self, tag: Tag) -> None:
        self._draft = self._new_draft()
        self._take_tag(tag)
        self._parts = []
        if tag.kind == "invoke":
            self._state = self._invoke_head
        elif tag.kind == "parameter":
            self._skip_call("a parameter stands outside of an invoke tag", _FORM)
        else:
            self._skip_call(f"unknown tag {tag.text!r}", _FORM)

    def _invoke_head(self) -> bool:
        """` name="...">`: the rest of the opening tag."""
        match, end = self._find(self._tags.invoke_head)
        self._parts.append(self._take(end))
        if match is None:
            return False
        if self._is_end(match):
            return True
        if match["sure"]:
            self._parts.append(self._take(match.end()))
            self._name_call("".join(self._parts))
        else:
            self._skip_call("the invoke tag is not complete", _FORM)
        return True

    def _name_call(self, head: str) -> None:
        match = _INVOKE_HEAD.fullmatch(head)
        if match is None:
            self._skip_call(f"the invoke tag has no name that can be read: {_short(head)}", _FORM)
            return
        draft, name = self._current(), match["name"]
        draft.name = name
        self._deltas.append(ToolCallStarted(draft.index, name))
        if match["slash"]:
            self._deviate("a call closed by", "/>")
            self._close_call()
            return
        if head != f' name="{name}">':
            self._deviate("an invoke tag written loosely", head)
        self._enter_body()

    def _enter_body(self) -> None:
        self._parts = []
        self._state = self._body

    def _body(self) -> bool:
        """Around the parameters of a call."""
        match, end = self._find(self._tags.block)
        self._parts.append(self._take(end))
        if match is None:
            return False
        if not self._is_end(match):
            self._read_tag_in_call(self._tags.read(match[0]), "".join(self._parts))
        return True

    def _read_tag_in_call(self, tag: Tag, gap: str) -> None:
        closes = tag.kind == "invoke" and tag.is_close
        opens = tag.kind == "parameter" and not tag.is_close
        if gap.strip():
            if closes and self._read_json_body(gap):
                self._take_tag(tag)
                self._expect_tag_end(self._close_call)
            else:
                self._skip_call(f"text stands between the parameters: {_short(gap)}", _FORM)
        elif closes or opens:
            self._flag_body_gap(gap, closes)
            self._take_tag(tag)
            self._expect_tag_end(self._close_call) if closes else self._open_parameter(tag)
        else:
            self._skip_call(f"the call is not closed before {tag.text!r}", _CLOSE)

    def _flag_body_gap(self, gap: str, closes: bool) -> None:
        is_empty = closes and not self._current().num_parameters
        if gap != "\n" and not (is_empty and gap == "\n\n"):
            self._deviate("not one newline inside a call", gap)

    def _read_json_body(self, gap: str) -> bool:
        """Arguments as one JSON object in place of parameters."""
        draft, raw = self._current(), gap.strip()
        if draft.num_parameters or not raw.startswith("{"):
            return False
        try:
            arguments, repeats = read_json(raw)
        except ValueError as error:
            self._fail(f"the arguments are not a JSON object: {error}", _FORM)
            return False
        self._deviate("arguments written as a JSON object")
        self._flag_repeats(repeats)
        self._grow_arguments(draft.set_all(arguments, raw))
        return True

    def _close_call(self) -> None:
        draft, self._draft = self._current(), None
        if draft.failure is not None:
            call = draft.malformed()
            self._malformed.append(call)
            self._deltas.append(ToolCallMalformed(draft.index, call))
        else:
            if rest := draft.close():
                self._deltas.append(ToolCallArgumentsDelta(draft.index, rest))
            finished = draft.finished()
            self._calls.append(finished)
            self._deltas.append(ToolCallFinished(draft.index, finished))
        if self._calls_in_block is None:
            self._enter_text_after_calls()
        else:
            self._calls_in_block += 1
            self._enter_block()

    # ---- one parameter ---------------------------------------------------------------------------------------------

    def _open_parameter(self, tag: Tag) -> None:
        self._marker = tag.marker
        self._value_end = self._tags.value(tag.marker)
        self._parts = []
        self._state = self._parameter_head

    def _parameter_head(self) -> bool:
        """` name="..." string="...">`: the rest of the opening tag."""
        match, end = self._find(self._tags.parameter_head)
        self._parts.append(self._take(end))
        if match is None:
            return False
        if self._is_end(match):
            return True
        if match["sure"]:
            self._parts.append(self._take(match.end()))
            self._read_parameter_head("".join(self._parts))
        else:
            self._read_loose_parameter("".join(self._parts), self._tags.read(match[0]))
        return True

    def _read_parameter_head(self, head: str) -> None:
        match = _PARAMETER_HEAD.fullmatch(head)
        if match is None or match["flag"].lower() not in ("true", "false"):
            self._skip_call(f"a parameter tag cannot be read: {_short(head)}", _FORM)
            return
        self._key, self._is_string = match["name"], match["flag"].lower() == "true"
        if head != f' name="{self._key}" string="{"true" if self._is_string else "false"}">':
            self._deviate("a parameter tag written loosely", head)
        if self._is_new_key():
            self._parts = []
            self._state = self._value
            if self._is_string:
                self._grow_arguments(self._current().open_string(self._key))

    def _read_loose_parameter(self, text: str, tag: Tag) -> None:
        """Head and value in one, because `string` is missing or stands before `name`."""
        match = _LOOSE_PARAMETER.fullmatch(text)
        is_closed = tag.kind == "parameter" and tag.is_close and (tag.is_exact or tag.marker == self._marker)
        if match is None or not is_closed:
            self._skip_call(f"a parameter tag cannot be read: {_short(text)}", _FORM)
            return
        self._key, flag, value = match["name"], match["flag"], match["value"]
        self._deviate("the string attribute stands first" if flag else "the string attribute is missing", self._key)
        if self._is_new_key():
            self._take_tag(tag)
            self._add_value(value, {"true": True, "false": False, None: None}[flag])

    def _is_new_key(self) -> bool:
        if not self._current().has(self._key):
            return True
        self._skip_call(f"the parameter {self._key!r} is given twice", "Write every parameter once.")
        return False

    def _value(self) -> bool:
        match, end = self._find(self._value_end)
        self._read_value(self._take(end))
        if match is None:
            return False
        if not match[0].startswith("</"):
            self._skip_call(f"the parameter {self._key!r} is not closed before the next one", _CLOSE)
            return True
        self._take_tag(self._tags.read(match[0]))
        value = "".join(self._parts)
        if self._is_string:
            self._grow_arguments(self._current().close_string(self._key, value))
            self._expect_tag_end(self._enter_body)
        else:
            self._add_value(value, is_string=False)
        return True

    def _read_value(self, text: str) -> None:
        self._parts.append(text)
        if self._is_string and text:
            self._grow_arguments(self._current().write_string(text))

    def _add_value(self, text: str, is_string: bool | None) -> None:
        """A value that could not be streamed; `is_string` None: JSON if it is JSON."""
        draft = self._current()
        try:
            if is_string:
                raise ValueError
            value, repeats = read_json(text)
        except ValueError as error:
            if is_string is False:
                self._skip_call(
                    f'the parameter {self._key!r} has string="false", but its value is no JSON: {error}', _JSON
                )
                return
            self._grow_arguments(draft.add_string(self._key, text))
        else:
            self._flag_repeats(repeats)
            self._grow_arguments(draft.add_json(self._key, value, text))
        self._expect_tag_end(self._enter_body)

    def _grow_arguments(self, text: str) -> None:
        self._deltas.append(ToolCallArgumentsDelta(self._current().index, text))

    def _flag_repeats(self, repeats: bool) -> None:
        if repeats:
            self._deviate("a JSON object names a key twice; the last one counts")

    # ---- what is broken, and ends ----------------------------------------------------------------------------------

    def _expect_tag_end(self, then: Callable[[], None]) -> None:
        self._after_tag = then
        self._tag_space = []
        self._state = self._tag_end

    def _tag_end(self) -> bool:
        """The `>` of a tag without attributes."""
        space = _SPACE.match(self._buffer, self._pos)
        assert space is not None
        self._tag_space.append(self._take(space.end()))
        if self._pos == len(self._buffer):
            return False
        if self._buffer[self._pos] == ">":
            self._take(self._pos + 1)
        else:
            self._deviate("a tag without its >")
        if before := "".join(self._tag_space):
            self._deviate("white space at the end of a tag", before)
        self._after_tag()
        return True

    def _fail(self, reason: str, hint: str) -> None:
        """The call cannot be saved; the first reason counts."""
        draft = self._current()
        if draft.failure is None:
            draft.failure = (reason, hint)

    def _skip_call(self, reason: str, hint: str) -> None:
        self._fail(reason, hint)
        self._state = self._skip

    def _skip(self) -> bool:
        """Up to the end of a call that has failed."""
        match, end = self._find(self._tags.block)
        self._take(end)
        if match is None:
            return False
        if self._is_end(match):
            return True
        tag = self._tags.read(match[0])
        if tag.kind == "invoke" and tag.is_close:
            self._take_tag(tag)
            self._expect_tag_end(self._close_call)
        elif tag.kind in ("invoke", "calls"):
            self._close_call()
        else:
            self._take(match.end())
        return True

    def _end(self, pos: int | None = None) -> None:
        """The end-of-sentence marker, which reaches up to `pos`."""
        self._finished = True
        if pos is not None:
            self._pos = pos
        self._close_what_is_open()
        self._state = self._ended

    def _ended(self) -> bool:
        self._trailing.append(self._take(len(self._buffer)))
        return False

    def _close_what_is_open(self) -> None:
        if self._draft is not None:
            self._fail("the completion ended before the call was closed", _CLOSE)
            self._close_call()
        if self._calls_in_block is not None:
            self._deviate("the block of calls is not closed")
            if not self._calls_in_block:
                self._close_empty_block()
        if self._space_after_calls:
            self._flag_space_after_calls()
        if self._is_reasoning:
            self._deviate("the thinking is not closed")


_SPACE = re.compile(r"\s*")
_INVOKE_HEAD = re.compile(r'\s*name\s*=\s*"(?P<name>.+)"\s*(?P<slash>/?)\s*>', re.DOTALL)
_PARAMETER_HEAD = re.compile(r'\s*name\s*=\s*"(?P<name>.*)"\s+string\s*=\s*"(?P<flag>\w*)"\s*>', re.DOTALL)
_LOOSE_PARAMETER = re.compile(
    r'\s*(?:string\s*=\s*"(?P<flag>true|false)"\s+)?name\s*=\s*"(?P<name>[^"]*)"\s*>(?P<value>.*)', re.DOTALL
)
_FORM = (
    "Write the call again in exactly the form that the tools section shows: the function_calls block, in it an invoke "
    "with its name, in that one parameter after another, each with name and string, and every tag closed."
)
_CLOSE = "Write the call again and close every parameter, the invoke and the block; shorten long values if need be."
_JSON = (
    'With string="false" write one JSON value (true, false, null, a number, an array or an object with double quotes); '
    'for text use string="true".'
)


def _newlines_before(buffer: str, start: int, end: int) -> int:
    """How many characters of line breaks before `end` belong to the block that opens there."""
    text = buffer[max(start, end - 4) : end]
    return next((len(breaks) for breaks in ("\n\n", "\r\n\r\n", "\r\n", "\n") if text.endswith(breaks)), 0)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
