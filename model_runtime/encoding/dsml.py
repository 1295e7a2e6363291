"""The tags of a tool-call block: how they are found in a stream, in the exact form and in the forms models slip into.

Enters: a buffer of text; leaves: the next tag, or the place from which text must be held back because it may become
one. Knows nothing of what the tags enclose.

    exact        <｜DSML｜invoke        </｜DSML｜parameter
    other bars   <|DSML|invoke  <｜｜DSML｜｜invoke  <‖DSML‖invoke  <｜DSML｜/invoke
    half         <DSML｜invoke  <｜DSMLinvoke  ｜DSML｜invoke      with a known name only
    unmarked     <invoke                                          inside a block, or `<function_calls>` before it
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from v32.model_runtime.encoding.dialect import Dialect

TagKind = Literal["calls", "invoke", "parameter", "unknown"]

HOLD_BACK = 96
"""No text is held back further than this; the longest prefix of a marker is shorter."""

_BARS = "[｜|‖]{1,4}"
_LETTER = "[A-Za-z_]"
_WRAPPERS = {"functioncalls", "functioncall", "toolcalls", "toolcall", "tools", "tool", "calls"}


@dataclass(frozen=True, slots=True)
class Tag:
    kind: TagKind
    is_close: bool
    marker: str
    """As spelled: `｜DSML｜`, `|DSML|`, or nothing."""
    text: str
    """The tag up to its name; attributes and `>` follow."""
    is_exact: bool


class Finder:
    """Finds the first of several patterns in a stream.

    `sure` are matches that no further text can change; `open_ended` ones may still grow at the end of the buffer.
    `prefixes` match every text that may become a match.
    """

    def __init__(
        self, *, sure: Sequence[str] = (), open_ended: Sequence[str] = (), prefixes: Sequence[str], lead: str = ""
    ) -> None:
        first = '[<｜"\r\n]' if lead else '[<｜"]'
        self._first = re.compile(first)
        self._search = re.compile(f"(?={first})(?:(?P<sure>{_any(sure)})|{_any(open_ended)})")
        self._hold = re.compile(rf"(?={first})(?:(?:{lead})?{_any(prefixes)}|{lead or '(?!)'})\Z")

    def find(self, buffer: str, start: int, *, is_last: bool) -> tuple[re.Match[str] | None, int]:
        """The next match, and where the text before it ends; without a match, where certain text ends."""
        first = self._first.search(buffer, start)  # most pieces hold nothing that any pattern could begin with
        if first is None:
            return None, len(buffer)
        match = self._search.search(buffer, first.start())
        if match is not None and (is_last or match["sure"] or match.end() < len(buffer)):
            return match, match.start()
        held = None if is_last else self._hold.search(buffer, max(first.start(), len(buffer) - HOLD_BACK))
        return None, held.start() if held else len(buffer)


class Tags:
    """The finders of one dialect. `with_markers` also finds `<think>`, the end of sentence and the like."""

    def __init__(self, dialect: Dialect, *, with_markers: bool) -> None:
        self._dialect = dialect
        word = dialect.dsml.strip("｜|")
        letters = [f"[{letter.lower()}{letter.upper()}]" for letter in word]
        dsml = "".join(letters)
        known = f"(?i:_?(?:function|tool)_?calls?|{dialect.invoke_tag}|{dialect.parameter_tag})(?!{_LETTER})"
        marked = [
            f"</?{_BARS}{dsml}{_BARS}/?{_LETTER}{{0,32}}",
            f"(?:</?(?:{_BARS}{dsml}|{dsml}{_BARS})|｜{{1,4}}{dsml}｜{{1,4}})/?{known}",
        ]
        wrapper = rf"<(?:function|tool)_calls(?=>\s{{0,8}}<(?:{_BARS}{dsml}{_BARS})?{dialect.invoke_tag}\s)"
        name = f"{_LETTER}{{0,32}}"
        prefixes = [
            _prefix("<", "/?", _BARS, *letters, f"(?:{_BARS})?", "/?", name),
            _prefix("<", "/?", *letters, _BARS, "/?", name),
            _prefix("｜{1,4}", *letters, "｜{1,4}", "/?", name),
        ]
        wrapper_prefixes = [
            _prefix(
                *f"<{verb}_calls>", r"\s{0,8}", "<", rf"[｜|‖{word.lower()}{word.upper()}]{{0,8}}", *dialect.invoke_tag
            )
            for verb in ("function", "tool")
        ]
        in_text = (dialect.eos, dialect.bos, dialect.think_open, dialect.think_close) if with_markers else ()
        in_block = (dialect.eos,) if with_markers else ()
        block_prefixes = [*prefixes, _prefix("<", "/?", name), *_literal_prefixes(in_block)]
        unmarked = f"</?{known}"
        in_text_prefixes = [*prefixes, *wrapper_prefixes, *_literal_prefixes(in_text)]
        broken = rf"</?{_BARS}{_prefix(*letters, _BARS)}"

        self.text = Finder(
            sure=_literals(in_text),
            open_ended=[*marked, wrapper],
            prefixes=[*in_text_prefixes, broken + _any(in_text_prefixes)],
            lead="[\r\n]{1,4}",
        )
        self.block = Finder(sure=_literals(in_block), open_ended=[*marked, unmarked], prefixes=block_prefixes)
        self.invoke_head = Finder(
            sure=[r'"\s{0,4}/?\s{0,4}>', *_literals(in_block)],
            open_ended=[*marked, unmarked],
            prefixes=[_prefix('"', r"\s{0,4}", "/?", r"\s{0,4}"), *block_prefixes],
        )
        self.parameter_head = Finder(
            sure=[rf'"\s{{1,4}}string\s{{0,2}}=\s{{0,2}}"{_LETTER}{{0,8}}"\s{{0,4}}>', *_literals(in_block)],
            open_ended=[*marked, unmarked],
            prefixes=[
                _prefix(
                    '"', r"\s{1,4}", *"string", r"\s{0,2}", "=", r"\s{0,2}", '"', f"{_LETTER}{{0,8}}", '"', r"\s{0,4}"
                ),
                *block_prefixes,
            ],
        )
        self._broken = re.compile(rf"{broken}\Z")
        self._parts = re.compile(rf"<?(/?)((?:[｜|‖]*{dsml}[｜|‖]*)?)(/?)({_LETTER}*)")

    def value(self, marker: str) -> Finder:
        """The end of a value whose parameter was opened with `marker`: its closing tag, or the next parameter.

        Everything else in a value is the value's own, other tags included.
        """
        return _value_finder(self._dialect, marker)

    def broken_end(self, text: str) -> int:
        """Where a tag was being written when the text ended or another began, too short to be found by `text`."""
        match = self._broken.search(text, max(0, len(text) - HOLD_BACK))
        return match.start() if match else len(text)

    def first_opening(self, text: str) -> int | None:
        """Where the first call or block of calls opens in a complete text."""
        start = 0
        while True:
            match, end = self.text.find(text, start, is_last=True)
            if match is None:
                return None
            if not match["sure"] and not self.read(match[0]).is_close:
                return end
            start = match.end()

    def read(self, text: str) -> Tag:
        match = self._parts.fullmatch(text)
        assert match is not None, text
        slash, marker, late_slash, name = match.groups()
        is_exact = text in (f"<{self._dialect.dsml}{name}", f"</{self._dialect.dsml}{name}") and name in self._names
        return Tag(self._kind(name), bool(slash or late_slash), marker, text, is_exact)

    @property
    def _names(self) -> tuple[str, ...]:
        return (self._dialect.calls_tag, self._dialect.invoke_tag, self._dialect.parameter_tag)

    def _kind(self, name: str) -> TagKind:
        plain = name.lower()
        if plain == self._dialect.invoke_tag:
            return "invoke"
        if plain == self._dialect.parameter_tag:
            return "parameter"
        return "calls" if plain.replace("_", "") in _WRAPPERS else "unknown"


@lru_cache(maxsize=8)
def tags_of(dialect: Dialect, *, with_markers: bool) -> Tags:
    return Tags(dialect, with_markers=with_markers)


@lru_cache(maxsize=64)
def _value_finder(dialect: Dialect, marker: str) -> Finder:
    markers = dict.fromkeys((dialect.dsml, marker))
    literals = [f"</{one}{dialect.parameter_tag}" for one in markers]
    literals += [f"<{one}{dialect.parameter_tag} " for one in markers]
    return Finder(sure=_literals(literals), prefixes=_literal_prefixes(literals))


def _any(patterns: Sequence[str]) -> str:
    return f"(?:{'|'.join(patterns)})" if patterns else "(?!)"


def _literals(texts: Sequence[str]) -> list[str]:
    return [re.escape(text) for text in texts]


def _literal_prefixes(texts: Sequence[str]) -> list[str]:
    return [_prefix(*map(re.escape, text)) for text in texts]


def _prefix(*atoms: str) -> str:
    """Matches every non-empty prefix of the sequence: a(?:b(?:c)?)?"""
    return "(?:".join(atoms) + ")?" * (len(atoms) - 1)
