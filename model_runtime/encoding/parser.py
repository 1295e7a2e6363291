"""The one parser of completions: reasoning, content and tool calls, from text as it arrives.

Enters: the completion's text in pieces of any size, and, where token ids are known, its control markers; leaves:
deltas, and at the end a ParsedCompletion. Any text has a parse; what is wrong with it is a deviation (still
understood) or a MalformedToolCall (never executed). Knows nothing of token ids, tools or schemas.

    text ──block opens──▶ between ──a tag opens──▶ one call (call_reader.py)
     ▲                       │ ▲                         │
     └──────block closes─────┘ └───────its end───────────┘
"""

from __future__ import annotations

import re

from v32.model_runtime.encoding.call_reader import CallReader
from v32.model_runtime.encoding.dialect import V32, Dialect
from v32.model_runtime.encoding.dsml import Tag, tags_of
from v32.model_runtime.encoding.encoder import check_thinking_mode
from v32.model_runtime.encoding.parts import Parts
from v32.model_runtime.encoding.scanner import Scanner
from v32.model_runtime.encoding.seam import Seam
from v32.model_runtime.messages import Delta, ParsedCompletion


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
        self._dialect = dialect
        self._tags = tags_of(dialect, with_markers=not ids_known)
        self._parts = Parts()
        self._seam = Seam(self._tags.text)
        self._scanner = Scanner(self._parts, dialect.eos, self._end)
        self._scanner.state = self._text
        self._call = CallReader(self._scanner, self._parts, self._tags, first_call_index, self._after_call)

        self._trailing: list[str] = []
        self._finished = False
        """The end of the sentence was seen."""
        self._is_closed = False
        self._has_said = False
        """Anything but white space."""
        self._calls_in_block: int | None = None
        """None outside of a block."""
        self._gap: list[str] = []
        """What stands between the calls of a block."""
        self._space_after_calls: list[str] | None = None
        """The white space after a call or block, while nothing else has followed it."""

    # ---- the public side -------------------------------------------------------------------------------------------

    def feed(self, text: str) -> list[Delta]:
        """Ordinary text. What may be the beginning of a tag is held back, at most `dsml.HOLD_BACK` characters."""
        self._check_is_open()
        self._scanner.feed(text)
        return self._parts.drain()

    def feed_control(self, marker: str) -> list[Delta]:
        """One control token. It ends whatever tag was being spelled before it."""
        if marker == self._dialect.dsml:
            return self.feed(marker)
        self._check_is_open()
        self._scanner.run(is_last=True)
        if marker == self._dialect.eos and not self._finished:
            self._end()
        elif self._scanner.state == self._text and marker not in (self._dialect.user, self._dialect.assistant):
            self._read_marker(marker)
        else:
            self._scanner.feed(marker)
        return self._parts.drain()

    def close(self) -> list[Delta]:
        """No more text follows: the deltas of what was held back."""
        if not self._is_closed:
            self._scanner.run(is_last=True)
            if not self._finished:
                self._close_what_is_open()
            if trailing := "".join(self._trailing):
                self._parts.deviate("text after the end", trailing)
            self._is_closed = True
        return self._parts.drain()

    def finish(self) -> ParsedCompletion:
        """The whole completion; closes first, where that has not been done."""
        self.close()
        return self._parts.whole(finished=self._finished)

    def _check_is_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("feed after close; start a new CompletionParser for each completion")

    # ---- outside of a block ----------------------------------------------------------------------------------------

    def _enter_text(self) -> None:
        self._calls_in_block = None
        self._scanner.state = self._text

    def _enter_text_after_calls(self) -> None:
        self._space_after_calls = []
        self._enter_text()

    def _text(self) -> bool:
        match, end = self._scanner.find(self._tags.text)
        if match is None:
            text = self._scanner.take(end)
            self._say_before(text) if self._scanner.is_last else self._say(text)
            return False
        if match["sure"]:
            self._read_text_marker(match)
        else:
            self._read_tag_in_text(self._tags.read(match[0]), end)
        return True

    def _read_text_marker(self, match: re.Match[str]) -> None:
        self._say_before(self._scanner.take(match.start()))
        if not self._scanner.take_end(match):
            self._read_marker(self._scanner.take(match.end()))

    def _read_marker(self, marker: str) -> None:
        if marker == self._dialect.think_close and self._is_reasoning:
            self._end_reasoning()
        elif marker == self._dialect.think_open and not self._has_said:
            self._parts.deviate("the completion begins with", marker)
            self._is_reasoning = True
        else:
            self._parts.deviate("stray marker", marker)
            self._seam.open()

    def _end_reasoning(self) -> None:
        self._is_reasoning = False
        self._seam.forget()

    def _read_tag_in_text(self, tag: Tag, start: int) -> None:
        if tag.is_close:
            self._say_before(self._scanner.take(start))
            self._parts.deviate("stray closing tag", tag.text)
            self._seam.open()
            self._scanner.take_tag(tag)
            self._scanner.expect_tag_end(self._enter_text)
            return
        text = self._scanner.ahead(start)
        newlines = _newlines_at_the_end(text)
        before = self._scanner.take(start - len(newlines))
        self._say_before(before, may_end_in_a_tag=not newlines)
        self._seam.open()
        self._leave_text(self._scanner.take(start))
        if tag.kind == "calls":
            self._scanner.take_tag(tag)
            self._calls_in_block, self._gap = 0, []
            self._scanner.expect_tag_end(self._enter_block)
        else:
            self._parts.deviate("a call without a block around it")
            self._open_call(tag)

    def _leave_text(self, newlines: str) -> None:
        """`newlines` stand before an opening tag and belong to it."""
        if self._space_after_calls is not None:
            self._space_after_calls.append(newlines)
            self._flag_space_after_calls()
            self._parts.deviate("another block of calls")
        elif newlines != "\n\n":
            self._parts.deviate("not two newlines before the calls", newlines)
        if self._is_reasoning:
            self._end_reasoning()
            self._parts.deviate("a call ended the thinking; </think> is missing")

    def _say(self, text: str) -> None:
        """Emit text as reasoning or content."""
        if self._space_after_calls is not None:
            text = self._skip_space_after_calls(text)
        if text:
            self._has_said = self._has_said or not text.isspace()
            self._emit(*self._seam.pass_on(text))

    def _say_before(self, text: str, *, may_end_in_a_tag: bool = True) -> None:
        """Emit text that a marker, a tag or the end follows; a tag that was only begun there is not content."""
        end = self._tags.broken_end(text) if may_end_in_a_tag else len(text)
        self._say(text[:end])
        self._emit(*self._seam.close())
        if text[end:]:
            self._parts.deviate("a tag that was only begun", text[end:])

    def _emit(self, text: str, dropped: list[str]) -> None:
        for piece in dropped:
            self._parts.deviate("a piece that would join into a tag", piece)
        if text:
            self._parts.reason(text) if self._is_reasoning else self._parts.say(text)

    def _skip_space_after_calls(self, text: str) -> str:
        assert self._space_after_calls is not None
        rest = text.lstrip()
        self._space_after_calls.append(text[: len(text) - len(rest)])
        if rest:
            self._flag_space_after_calls()
            self._parts.deviate("text after the calls")
        return rest

    def _flag_space_after_calls(self) -> None:
        space = "".join(self._space_after_calls or [])
        self._space_after_calls = None
        if space:
            self._parts.deviate("white space after the calls", space)

    # ---- inside a block, between calls -----------------------------------------------------------------------------

    def _enter_block(self) -> None:
        self._gap = []
        self._scanner.state = self._between

    def _between(self) -> bool:
        match, end = self._scanner.find(self._tags.block)
        if self._calls_in_block and self._scanner.ahead(end).strip():
            return self._abandon_block()
        self._gap.append(self._scanner.take(end))
        if match is None:
            return False
        if not self._scanner.take_end(match):
            self._read_tag_in_block(self._tags.read(match[0]))
        return True

    def _abandon_block(self) -> bool:
        """Text where a tag should be, after a call: the block was left without being closed."""
        self._parts.deviate("the block of calls is not closed")
        self._enter_text_after_calls()
        self._space_after_calls = self._gap
        return True

    def _read_tag_in_block(self, tag: Tag) -> None:
        if tag.kind == "calls" and tag.is_close:
            self._scanner.take_tag(tag)
            self._scanner.expect_tag_end(self._leave_block)
        elif tag.kind == "calls" or tag.is_close:
            self._parts.deviate("stray tag in the block", tag.text)
            self._scanner.take_tag(tag)
            self._scanner.expect_tag_end(self._resume_block)
        else:
            self._flag_gap("before a call")
            self._open_call(tag)

    def _resume_block(self) -> None:
        self._scanner.state = self._between

    def _leave_block(self) -> None:
        if self._calls_in_block:
            self._flag_gap("before the end of the block")
        else:
            self._close_empty_block()
        self._enter_text_after_calls()

    def _flag_gap(self, where: str) -> None:
        gap = "".join(self._gap)
        if gap != "\n":
            self._parts.deviate(f"{'text' if gap.strip() else 'not one newline'} {where}", gap)

    def _close_empty_block(self) -> None:
        text = "".join(self._gap)
        if text.strip():
            self._has_said = True
            self._call.refuse(text, "the block holds text where calls should be")
        else:
            self._parts.deviate("a block without calls", text)

    # ---- calls, and the end ----------------------------------------------------------------------------------------

    def _open_call(self, tag: Tag) -> None:
        self._has_said = True
        self._call.open(tag)

    def _after_call(self) -> None:
        if self._calls_in_block is None:
            self._enter_text_after_calls()
        else:
            self._calls_in_block += 1
            self._enter_block()

    def _end(self) -> None:
        """The end of the sentence."""
        self._finished = True
        self._close_what_is_open()
        self._scanner.state = self._ended

    def _ended(self) -> bool:
        self._trailing.append(self._scanner.take_all())
        return False

    def _close_what_is_open(self) -> None:
        self._call.break_off()
        if self._calls_in_block is not None:
            self._parts.deviate("the block of calls is not closed")
            if not self._calls_in_block:
                self._close_empty_block()
        if self._space_after_calls:
            self._flag_space_after_calls()
        if self._is_reasoning:
            self._parts.deviate("the thinking is not closed")


def _newlines_at_the_end(text: str) -> str:
    """The line breaks that belong to the block which opens after `text`."""
    return next((breaks for breaks in ("\n\n", "\r\n\r\n", "\r\n", "\n") if text.endswith(breaks)), "")
