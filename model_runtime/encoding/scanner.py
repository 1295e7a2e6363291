"""A place in text that arrives in pieces, and the state that reads on from there.

Each state is a method of whoever reads; it consumes what is certain and returns whether the next state may go on. What
may be the beginning of a tag stays in the buffer, at most `dsml.HOLD_BACK` characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from v32.model_runtime.encoding.dsml import Finder, Tag
from v32.model_runtime.encoding.parts import Parts

State = Callable[[], bool]
_SPACE = re.compile(r"\s*")


class Scanner:
    def __init__(self, parts: Parts, eos: str, at_end: Callable[[], None]) -> None:
        """`at_end` is called once the end-of-sentence marker `eos` has been consumed."""
        self.state: State = lambda: False
        self.kept: list[str] | None = None
        """Where everything that is consumed is also put, such as the raw text of a call; None: nowhere."""
        self.is_last = False
        """The end of the buffer is the end of whatever stands there."""
        self._parts = parts
        self._eos = eos
        self._at_end = at_end
        self._buffer = ""
        self._pos = 0
        self._tag_space: list[str] = []
        self._after_tag: Callable[[], None] = lambda: None

    def feed(self, text: str) -> None:
        self._buffer = self._buffer[self._pos :] + text if self._pos < len(self._buffer) else text
        self._pos = 0
        self.run()

    def run(self, *, is_last: bool = False) -> None:
        self.is_last = is_last
        while self.state():
            pass
        self.is_last = False

    def find(self, finder: Finder) -> tuple[re.Match[str] | None, int]:
        """The next match, and where the text before it ends; without a match, where certain text ends."""
        return finder.find(self._buffer, self._pos, is_last=self.is_last)

    def ahead(self, end: int) -> str:
        """The text up to `end`, which stays where it is."""
        return self._buffer[self._pos : end]

    def take(self, end: int) -> str:
        """Consume up to `end`."""
        piece = self._buffer[self._pos : end]
        self._pos = end
        if self.kept is not None and piece:
            self.kept.append(piece)
        return piece

    def take_all(self) -> str:
        return self.take(len(self._buffer))

    def take_tag(self, tag: Tag) -> None:
        if not tag.is_exact:
            self._parts.deviate("tag spelled", tag.text)
        self.take(self._pos + len(tag.text))

    def take_end(self, match: re.Match[str]) -> bool:
        """Consume the end-of-sentence marker, if it is that."""
        if match[0] != self._eos:
            return False
        self._pos = match.end()
        self._at_end()
        return True

    def expect_tag_end(self, then: Callable[[], None]) -> None:
        """Read the `>` of a tag without attributes, then go on with `then`."""
        self._after_tag = then
        self._tag_space = []
        self.state = self._tag_end

    def _tag_end(self) -> bool:
        space = _SPACE.match(self._buffer, self._pos)
        assert space is not None
        self._tag_space.append(self.take(space.end()))
        if self._pos == len(self._buffer):
            return False
        if self._buffer[self._pos] == ">":
            self.take(self._pos + 1)
        else:
            self._parts.deviate("a tag without its >")
        if before := "".join(self._tag_space):
            self._parts.deviate("white space at the end of a tag", before)
        self._after_tag()
        return True
