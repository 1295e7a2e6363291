"""Forced text to forced tokens: only those that the canonical tokenisation of the whole text is certain to have.

A text that must come next is worth skipping model steps for, but its last tokens may merge with what follows: after
`string="true">` the value may begin with `<`, and `"><` is one token. So tokens are kept up to the last boundary
between pre-tokens that every possible continuation leaves in place; inside a finished pre-token, BPE changes no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from v32.model_runtime.encoding import ChatTokenizer, Segment

# One character of every class that pre-tokenizers tell apart, and what may come second.
_ANY_START = ("a", "Z", "1", " ", "\n", "\r", "\t", "<", "'", "｜", "中", "é", "\u0301")
_SECOND = ("", "a", "1", "\n", " a", "<")
_CACHE_SIZE = 4096


class CanonicalForcing:
    """Tokenises forced text in its context; results are remembered, since syntax repeats."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pre_tokenizer = tokenizer.backend.pre_tokenizer
        marker = tokenizer.dialect.dsml
        self._marker = marker if len(tokenizer.encode_control(marker)) == 1 else None
        """Where one token stands for it, the text before and after it is tokenised apart."""
        self._cache: dict[tuple[str, str, tuple[str, ...] | None], list[int]] = {}

    def tokens(self, left: str, text: str, starts: Iterable[str] | None = None) -> list[int]:
        """The certain tokens at the beginning of `text`.

        `left` is the text of the last tokens before it, back to a control token or far enough to hold the current
        pre-token; `starts` are the characters that may follow `text` ("" for a control token), None if any may.
        """
        key = (left, text, None if starts is None else tuple(sorted(starts)))
        if key not in self._cache:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = self._certain_tokens(*key)
        return list(self._cache[key])

    def _certain_tokens(self, left: str, text: str, starts: tuple[str, ...] | None) -> list[int]:
        whole = left + text
        settled = whole.rfind(self._marker) + len(self._marker) if self._marker and self._marker in whole else 0
        end = settled + self._last_certain_boundary(whole[settled:], _ANY_START if starts is None else starts)
        if end <= len(left):
            return []
        ids = self._tokenizer.encode_segments(self._segments(whole[:end]))
        ends = list(accumulate(len(self._tokenizer.token_bytes(token_id)) for token_id in ids))
        start = len(left.encode())
        if start == 0:
            return ids
        return ids[ends.index(start) + 1 :] if start in ends else []

    def _segments(self, text: str) -> list[Segment]:
        if self._marker is None:
            return [Segment(text)]
        pieces = text.split(self._marker)
        return [
            Segment(pieces[0]),
            *(part for piece in pieces[1:] for part in (Segment(self._marker, True), Segment(piece))),
        ]

    def _last_certain_boundary(self, whole: str, starts: Iterable[str]) -> int:
        if self._pre_tokenizer is None:
            return 0
        common: set[int] | None = None
        for start in starts:
            for second in _SECOND if start else ("",):
                pieces = self._pre_tokenizer.pre_tokenize_str(whole + start + second)
                boundaries = {end for _, (_, end) in pieces if end <= len(whole)}
                common = boundaries if common is None else common & boundaries
        return max(common, default=0) if common else 0
