"""Where something was taken out of a text: what was said before it and what comes after it must not join into a tag.

said <｜ | a stray marker, taken out | DSML｜invoke name=…      the second piece is dropped up to the name's end
"""

from __future__ import annotations

from v32.model_runtime.encoding.dsml import HOLD_BACK, Finder


class Seam:
    """`open` where something is taken out, `pass_on` all text that is to be said, `close` before what is no text."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder
        self._said = ""
        """The end of it, as far as a tag may reach."""
        self._begun = ""
        """The end of what was said, where it may begin a tag and a seam follows."""
        self._held = ""
        """What came after the seam and may go on with that tag."""

    def forget(self) -> None:
        """Another text begins."""
        self._said = self._begun = ""

    def open(self) -> None:
        _, end = self._finder.find(self._said, 0, is_last=False)
        self._begun = self._said[end:]

    def pass_on(self, text: str) -> tuple[str, list[str]]:
        """What can be said now, and the pieces that are dropped before it."""
        return self._judged(text, is_last=False) if self._begun else (self._note(text), [])

    def close(self) -> tuple[str, list[str]]:
        """The same of what was held back."""
        return self._judged("", is_last=True) if self._begun else ("", [])

    def _judged(self, text: str, *, is_last: bool) -> tuple[str, list[str]]:
        begun, self._held = len(self._begun), self._held + text
        dropped: list[str] = []
        match, end = self._finder.find(self._begun + self._held, 0, is_last=is_last)
        while match is not None and end < begun:
            after = max(match.end() - begun, 1)  # what makes a tag of it may only follow
            dropped.append(self._held[:after])
            self._held = self._held[after:]
            match, end = self._finder.find(self._begun + self._held, 0, is_last=is_last)
        if end < begun:
            return "", dropped
        text, self._held, self._begun = self._held, "", ""
        return self._note(text), dropped

    def _note(self, text: str) -> str:
        self._said = (self._said + text)[-HOLD_BACK:]
        return text
