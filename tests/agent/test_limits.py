"""Limits: a run goes on exactly while every count is below its bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v32.agent.limits import Limits, Progress, StopReason, calls_left, reached, tokens_left

COUNT = st.integers(0, 5)
BOUND = st.none() | st.integers(1, 5)


@given(turns=COUNT, tokens=COUNT, refused=COUNT, most_turns=BOUND, most_tokens=BOUND, most_refused=BOUND)
def test_a_limit_is_reached_exactly_at_its_bound(
    turns: int, tokens: int, refused: int, most_turns: int | None, most_tokens: int | None, most_refused: int | None
) -> None:
    limits = Limits(turns=most_turns, tokens=most_tokens, refused_turns=most_refused)
    progress = Progress(turns=turns, tokens=tokens, refused_turns=refused)
    pairs = [(turns, most_turns), (tokens, most_tokens), (refused, most_refused)]
    assert (reached(limits, progress) is not None) == any(bound is not None and n >= bound for n, bound in pairs)


def test_the_reason_and_the_words_say_which_limit() -> None:
    assert reached(Limits(turns=3), Progress(turns=3)) == (StopReason.TURN_LIMIT, "3 of 3 turns")


@given(bound=BOUND, used=COUNT)
def test_what_is_left_is_never_negative(bound: int | None, used: int) -> None:
    limits = Limits(tool_calls=bound, tokens=bound)
    for left in (calls_left(limits, Progress(tool_calls=used)), tokens_left(limits, Progress(tokens=used))):
        assert left is None if bound is None else left == max(0, bound - used)


@pytest.mark.parametrize("name", ["turns", "tokens", "tool_calls", "seconds", "refused_turns"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_bound_of_nothing_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"Limits.{name} is {value}; it must be more than 0"):
        Limits(**{name: value})
