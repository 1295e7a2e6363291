"""What each context strategy keeps of a history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v32.agent.context import ContextPolicy, kept_by
from v32.agent.events import Completed, Spoken, ToolsReturned, UserSaid
from v32.model_runtime.messages import Completion, ParsedCompletion, ToolCall

STEP: list[Spoken] = [
    Completed(Completion((), ParsedCompletion(tool_calls=[ToolCall("call_0", "f", {}, "{}")]), "tool_calls")),
    ToolsReturned(()),
]
ANSWER = Completed(Completion((), ParsedCompletion(content="done"), "stop"))


def history(*steps_per_run: int) -> list[Spoken]:
    """Runs of so many tool steps each; all but the last are answered."""
    events: list[Spoken] = []
    for number, steps in enumerate(steps_per_run):
        events += [UserSaid(f"question {number}"), *STEP * steps]
        events += [ANSWER] if number < len(steps_per_run) - 1 else []
    return events


def num_steps(events: list[Spoken]) -> int:
    return sum(isinstance(event, ToolsReturned) for event in events)


runs = st.lists(st.integers(0, 6), min_size=1, max_size=4)


@given(steps=runs)
def test_discard_75_drops_the_first_three_quarters_of_the_steps(steps: list[int]) -> None:
    events = history(*steps)
    kept = kept_by("discard-75%", events)
    dropped = sum(steps) * 3 // 4
    if dropped == 0:
        assert kept is None
        return
    assert kept is not None
    remaining = [events[position] for position in kept]
    assert num_steps(remaining) == sum(steps) - dropped
    assert remaining[-2:] == events[-2:] or steps[-1] == 0


@given(steps=runs, strategy=st.sampled_from(["discard-all", "summary"]))
def test_discard_all_and_summary_drop_every_step(steps: list[int], strategy: str) -> None:
    events = history(*steps)
    kept = kept_by(strategy, events)  # type: ignore[arg-type]
    assert (kept is None) == (sum(steps) == 0)
    assert kept is None or num_steps([events[position] for position in kept]) == 0


@given(steps=runs, strategy=st.sampled_from(["discard-75%", "discard-all", "summary"]))
def test_messages_and_answers_always_stay_and_steps_stay_whole(steps: list[int], strategy: str) -> None:
    events = history(*steps)
    kept = kept_by(strategy, events)  # type: ignore[arg-type]
    remaining = events if kept is None else [events[position] for position in kept]
    is_spoken = lambda event: isinstance(event, UserSaid) or event is ANSWER  # noqa: E731
    assert [e for e in remaining if is_spoken(e)] == [e for e in events if is_spoken(e)]
    for position, event in enumerate(remaining):
        if event is STEP[0]:
            assert remaining[position + 1] is STEP[1]


@given(steps=runs)
def test_none_keeps_everything(steps: list[int]) -> None:
    assert kept_by("none", history(*steps)) is None


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown context strategy 'discard-50%'; known: discard-75%, discard-all"):
        ContextPolicy("discard-50%")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold is 80; it must lie in"):
        ContextPolicy(threshold=80)
