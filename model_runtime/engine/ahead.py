"""Prompts that will probably come, to be prefilled while nobody waits: what is wanted, how fast, and what came of it.

One wish an owner (a conversation), the newest counts. Nothing is held between two steps: what was computed lies in the
prefix cache, so stopping costs nothing and a prompt that does come finds all of it. Token ids only, no tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

STEP_SECONDS = 0.05
"""Who comes while a step runs waits for its end, so a step is cut to about this long."""
SMALLEST_STEP = 16
FIRST_STEP = 64
MOST_REMEMBERED = 256
"""Owners whose finished prefills are remembered, for the account of whoever uses them."""


class Ahead:
    """`want` a prompt, `forget` it; `credit` tells a sequence how much of its prompt was ready."""

    def __init__(self, max_step: int) -> None:
        self.step_tokens = min(FIRST_STEP, max_step)
        self._max_step = max_step
        self._wanted: dict[Hashable, Sequence[int]] = {}
        self._done: dict[Hashable, _Span] = {}

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def want(self, owner: Hashable, token_ids: Sequence[int]) -> None:
        """Prefill these ids when there is time; replaces what the owner wanted before."""
        self.forget(owner)
        self._wanted[owner] = token_ids

    def forget(self, owner: Hashable) -> None:
        self._wanted.pop(owner, None)
        self._done.pop(owner, None)

    def clear(self) -> None:
        """Forget what is wanted; what was done stays on record."""
        self._wanted.clear()

    def is_wanted(self, owner: Hashable) -> bool:
        return owner in self._wanted

    def next(self) -> tuple[Hashable, Sequence[int]]:
        """The oldest wish."""
        return next(iter(self._wanted.items()))

    def record(self, owner: Hashable, start: int, end: int, seconds: float) -> None:
        """Positions start..end-1 have been prefilled for the owner."""
        span = self._done.pop(owner, None) or _Span(self._wanted[owner], start)
        span.num_tokens += end - start
        self._done[owner] = span
        if len(self._done) > MOST_REMEMBERED:
            del self._done[next(iter(self._done))]
        self._pace(end - start, seconds)

    def finish(self, owner: Hashable) -> None:
        """No more is wanted."""
        self._wanted.pop(owner, None)

    def credit(self, token_ids: Sequence[int], num_cached: int) -> int:
        """How many of the first `num_cached` tokens were prefilled ahead; each is credited once."""
        for owner, span in self._done.items():
            end = min(span.start + span.num_tokens, num_cached)
            if span.start < end and token_ids[:end] == span.token_ids[:end]:
                del self._done[owner]
                return end - span.start
        return 0

    def _pace(self, num_tokens: int, seconds: float) -> None:
        if seconds > STEP_SECONDS:
            self.step_tokens = max(self.step_tokens // 2, min(SMALLEST_STEP, self._max_step))
        elif num_tokens == self.step_tokens and seconds < STEP_SECONDS / 3:
            self.step_tokens = min(2 * self.step_tokens, self._max_step)


@dataclass(slots=True)
class _Span:
    """Positions start..start+num_tokens-1 of a prompt."""

    token_ids: Sequence[int]
    start: int
    num_tokens: int = 0
