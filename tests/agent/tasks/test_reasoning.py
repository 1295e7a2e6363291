"""Tasks without tools: the reasoning of each demonstration leads to its answer, and both are right."""

from __future__ import annotations

import re
from random import Random

import pytest

from v32.agent.tasks.kinds import TaskKind
from v32.agent.tasks.reasoning import REASONING_KINDS, addition, count, largest, reversal
from v32.agent.tasks.task import Toolset, Turn


def _turn(kind: TaskKind, seed: int) -> Turn:
    (turn,) = kind(Random(seed), "held-out", Toolset(())).turns
    return turn


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


@pytest.mark.parametrize("seed", range(30))
def test_columns_add_up_to_the_sum(seed: int) -> None:
    turn = _turn(addition, seed)
    columns = [_numbers(step) for step in turn.reasoning.split(". ")]
    assert all(x + y + carry == total for x, y, carry, total in columns)
    value = sum((x + y) * 10**place for place, (x, y, _, _) in enumerate(columns))
    assert _numbers(turn.answer) == [value] == [sum(_numbers(turn.question))]


@pytest.mark.parametrize("seed", range(30))
def test_the_largest_number_is_found_by_comparing_each(seed: int) -> None:
    turn = _turn(largest, seed)
    assert _numbers(turn.answer) == [max(_numbers(turn.question))]
    for left, sign, right in re.findall(r"(\d+) ([<>]) (\d+)", turn.reasoning):
        assert (int(left) > int(right)) == (sign == ">")


@pytest.mark.parametrize("seed", range(30))
def test_every_name_is_counted_once(seed: int) -> None:
    turn = _turn(count, seed)
    counted = re.findall(r"\d is (\w+)\.", turn.reasoning)
    assert f": {', '.join(counted)}" in turn.question
    assert _numbers(turn.answer) == [len(counted)]


@pytest.mark.parametrize("seed", range(30))
def test_digits_are_taken_from_the_right(seed: int) -> None:
    turn = _turn(reversal, seed)
    assert turn.answer == "".join(map(str, _numbers(turn.reasoning)))
    assert turn.answer[::-1] in turn.question


@pytest.mark.parametrize("kind", REASONING_KINDS)
def test_no_tool_is_offered_or_called(kind: TaskKind) -> None:
    task = kind(Random(3), "train", Toolset(()))
    assert not task.builtin_tools
    assert not task.records
    assert not any(turn.steps for turn in task.turns)
