"""Tasks: the splits are disjoint, the demonstrations are right, and the simulated results are the real ones."""

from __future__ import annotations

from random import Random

import pytest

from v32.agent.tasks.kinds import (
    KINDS,
    TaskKind,
    arithmetic,
    compare,
    error_retry,
    kinds_for,
    lookup_compute,
    own_tool,
)
from v32.agent.tasks.names import is_held_out, misspelt, name, operands
from v32.agent.tasks.slips import with_slip
from v32.agent.tasks.task import Task, Toolset
from v32.agent.tasks.toolbox import Toolbox
from v32.agent.tasks.toolsets import random_toolset, record_tools, relation_named
from v32.agent.tasks.world import RELATIONS
from v32.tools.code import CodeSession, python_tool
from v32.tools.toolset import Toolset as RunningToolset

SLIPPING = (arithmetic, compare, error_retry, lookup_compute, own_tool)


def _toolset(random: Random) -> Toolset:
    return Toolset(("search", "python"), record_tools(random, 2))


def _task(kind: TaskKind, seed: int) -> Task:
    random = Random(seed)
    return kind(random, "held-out", _toolset(random))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_seed_gives_the_same_task(kind: TaskKind) -> None:
    assert _task(kind, 5) == _task(kind, 5)
    assert _task(kind, 5) != _task(kind, 6)


@pytest.mark.parametrize("seed", range(20))
def test_entities_of_the_splits_are_disjoint(seed: int) -> None:
    random = Random(seed)
    assert not is_held_out(name(random, "train"))
    assert is_held_out(name(random, "held-out"))
    assert is_held_out(*operands(random, "held-out"))
    assert not is_held_out(*operands(random, "train"))


def test_phrasings_of_the_splits_are_disjoint() -> None:
    from v32.agent.tasks import phrasing

    for form in (*phrasing.NOUN_FORMS, *(relation.question for relation in RELATIONS), *dict(phrasing.STORIES)):
        splits = phrasing._decorations(form)
        assert splits["train"]
        assert splits["held-out"]
        assert not set(splits["train"]) & set(splits["held-out"])


@pytest.mark.parametrize("seed", range(10))
def test_a_misspelt_name_is_another_one_that_the_tool_can_correct(seed: int) -> None:
    random = Random(seed)
    word = name(random, "train")
    assert misspelt(random, word) != word


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(8))
def test_what_the_answer_says_stands_in_a_result(kind: TaskKind, seed: int) -> None:
    """Every fact an answer gives was returned by one of the demonstrated calls."""
    task = _task(kind, seed)
    toolbox = Toolbox(task)
    for turn in task.turns:
        results = [toolbox.simulate(call) for step in turn.steps for call in step.calls]
        if turn.answer.startswith("The result is "):
            assert turn.answer == f"The result is {results[-1]}."
        elif kind.__name__ in ("lookup", "two_calls", "follow_up"):
            assert all(f"{fact}." in " ".join(results) for fact in turn.answer.rstrip(".").split(". "))
        elif kind.__name__ == "compare":
            assert turn.answer.startswith(f"{results[-1]} has the ")
        elif kind.__name__ == "not_found":
            subject = turn.answer.removeprefix("I could not find ").removesuffix(".")
            assert f"{subject} is ".capitalize() not in results[0]
        elif kind.__name__ in ("own_tool", "error_retry"):
            assert turn.answer.endswith(f" is {results[-1]}.")
        elif kind.__name__ == "two_hop":
            assert turn.answer.removesuffix(".").split(" is ")[-1] in results[-1]
    if kind.__name__ == "error_retry":
        assert results[0].startswith("Error: unknown ")
        assert results[0].endswith(f"did you mean {task.turns[0].steps[1].calls[0].arguments.popitem()[1]!r}?")


@pytest.mark.anyio
@pytest.mark.slow
async def test_simulated_results_are_those_of_the_real_tools() -> None:
    tasks = [_task(kind, seed) for seed, kind in enumerate(KINDS)]
    tasks += [with_slip(Random(seed), _task(kind, seed)) for kind in SLIPPING for seed in range(6)]
    for task in tasks:
        toolbox, code = Toolbox(task), CodeSession()
        tools = RunningToolset(toolbox.tools(python_tool(code)))
        try:
            from v32.tools.tool import ToolContext

            for turn in task.turns:
                for step in turn.steps:
                    for call in step.calls:
                        output = await tools.run(call.name, dict(call.arguments), ToolContext("call_0", "session"))
                        assert output.text == toolbox.simulate(call)
        finally:
            await code.aclose()


@pytest.mark.parametrize("kind", SLIPPING, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(6))
def test_a_slip_is_answered_with_an_error_and_then_mended(kind: TaskKind, seed: int) -> None:
    task = _task(kind, seed)
    turn = with_slip(Random(seed), task).turns[-1]
    at = next(i for i, step in enumerate(turn.steps) if step.is_slip)
    assert Toolbox(task).simulate(turn.steps[at].calls[0]).startswith("Error: ")
    assert (*turn.steps[:at], *turn.steps[at + 1 :]) == task.turns[-1].steps
    assert turn.steps[at].reasoning == turn.steps[at + 1].reasoning


def test_where_no_error_would_say_what_is_wrong_there_is_no_slip() -> None:
    task = _task(KINDS[0], 1)
    assert with_slip(Random(1), task) is task


@pytest.mark.parametrize("seed", range(30))
def test_a_toolset_offers_what_its_kinds_need(seed: int) -> None:
    random = Random(seed)
    toolset = random_toolset(random)
    offered = {*toolset.builtin, *(record.name for record in toolset.records)}
    for kind in kinds_for(toolset):
        task = kind(random, "train", toolset)
        assert {call.name for turn in task.turns for step in turn.steps for call in step.calls} <= offered


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.label)
def test_a_record_tool_is_about_the_relation_it_is_named_after(relation) -> None:  # type: ignore[no-untyped-def]
    assert relation_named(f"get_{relation.label.replace(' ', '_')}") is relation
