"""A suite run by the real agent with the real tools: a perfect model gets everything right, a silent one nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from v32.agent.evals.report import Outcome, Report, wilson_interval
from v32.agent.evals.suite import run_suite, run_tasks, suite_tasks
from v32.agent.tasks.kinds import KINDS
from v32.agent.tasks.task import Task
from v32.model_runtime.chat import ChatModel
from v32.model_runtime.checkpoint.variant import VariantInfo
from v32.model_runtime.errors import ToolsNotSupportedError
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.messages import Usage

SEED = 11


def _gold(tasks: list[Task], say) -> list[str]:  # type: ignore[no-untyped-def]
    """What a perfect model writes, completion by completion."""
    said = []
    for task in tasks:
        for turn in task.turns:
            for step in turn.steps:
                calls = [(call.name, dict(call.arguments)) for call in step.calls]
                said.append(say.calls(*calls, reasoning=step.reasoning))
            said.append(say.answer(turn.answer, turn.reasoning))
    return said


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("grammar", [False, True])
async def test_the_demonstrations_solve_every_kind(scripted: Callable[..., ChatModel], say, grammar: bool) -> None:  # type: ignore[no-untyped-def]
    tasks = suite_tasks("tiny", SEED, len(KINDS))
    model = scripted(*_gold(tasks, say), grammar=grammar)
    outcomes = await run_tasks(model, tasks, SEED, SamplingParams(), 1, lambda outcome: None)
    assert [outcome.outputs for outcome in outcomes] == [task.answers for task in tasks]
    assert all(outcome.is_success for outcome in outcomes)


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_model_that_knows_nothing_solves_nothing(scripted: Callable[..., ChatModel], say) -> None:  # type: ignore[no-untyped-def]
    model = scripted(*[say.answer("I do not know.")] * 22)
    report = await run_suite(model, "tiny", seed=SEED, n=22, concurrency=4)
    record = report.to_record()
    assert record["success"] == 0
    assert record["n"] == 22
    assert set(record["by_kind"]) == {kind.__name__ for kind in KINDS}
    assert record["tool_calls"] == 0


@pytest.mark.anyio
async def test_a_model_without_tools_is_refused_as_the_agent_refuses_it(scripted: Callable[..., ChatModel]) -> None:
    with pytest.raises(ToolsNotSupportedError, match=r"V3\.2-Speciale"):
        await run_suite(scripted(variant=VariantInfo("speciale", "given as variant=")), "tiny", seed=SEED, n=3)


@pytest.mark.anyio
async def test_a_reader_of_outcomes_that_has_gone_ends_the_suite(scripted: Callable[..., ChatModel], say) -> None:  # type: ignore[no-untyped-def]
    def gone(outcome: Outcome) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await run_suite(scripted(*[say.answer("4")] * 3), "tiny", seed=SEED, n=3, on_outcome=gone)


def test_a_suite_is_the_same_for_a_seed_and_new_for_another() -> None:
    assert suite_tasks("tiny", 1, 22) == suite_tasks("tiny", 1, 22)
    assert suite_tasks("tiny", 1, 22) != suite_tasks("tiny", 2, 22)


@pytest.mark.anyio
async def test_an_unknown_suite_is_named(scripted: Callable[..., ChatModel]) -> None:
    with pytest.raises(ValueError, match="unknown suite 'huge'; choose tiny"):
        await run_suite(scripted(), "huge")


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)]
)
def test_wilson_interval_has_the_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_no_tasks_make_an_empty_report() -> None:
    record = Report("tiny", 0, [], 0.0).to_record()
    assert (record["n"], record["success"], record["ci95"]) == (0, 0.0, [0.0, 1.0])


def test_an_answer_counts_only_if_it_is_exact() -> None:
    def outcome(*outputs: str) -> Outcome:
        return Outcome("lookup", ("q",), ("The age is 5.",), outputs, "answer", Usage(), 0.1)

    assert outcome("The age is 5.").is_success
    assert not outcome("The age is 51.").is_success
    assert not outcome().is_success
