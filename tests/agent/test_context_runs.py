"""Context strategies at work: a small context, a scripted model, and what it reads after the history was shortened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from v32.agent import Agent, Rebased, RunResult, Session, StopReason, read_journal
from v32.tools import tool

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Any]
CONTEXT = 1800
"""The tools' preamble takes about 480 tokens of it, a step about 350."""


@tool(in_worker=False, safe_to_retry=True)
def page(number: int) -> str:
    """Read a page."""
    return f"PAGE{number} " + "word " * 300


def steps(say: Any, count: int) -> list[str]:
    return [say.calls(("page", {"number": number}), reasoning=f"Read {number}.") for number in range(count)]


async def run(agent: Agent) -> tuple[RunResult, list[Rebased]]:
    items = [item async for item in agent.stream("What is on the pages?")]
    result = items[-1]
    assert isinstance(result, RunResult)
    return result, [item for item in items if isinstance(item, Rebased)]


def prompts_of(agent: Agent) -> list[str]:
    return [agent.model.tokenizer.decode(prompt) for prompt in agent.model.generator.prompts]  # type: ignore[attr-defined]


async def test_discard_75_keeps_the_question_and_the_last_steps(scripted: Scripted, say: Any) -> None:
    model = scripted(*steps(say, 6), say.answer("Words."), max_context=CONTEXT)
    agent = Agent(model, tools=[page], context="discard-75%")
    result, rebased = await run(agent)
    assert result.output == "Words."
    assert len(result.steps) == 7
    assert rebased
    assert all(event.tokens_after < event.tokens_before for event in rebased)
    first = prompts_of(agent)[3]
    assert "What is on the pages?" in first
    assert "PAGE2" in first
    assert "PAGE0" not in first
    assert "Read 2." in first, "reasoning of a step that stays, stays"


async def test_discard_all_starts_again_from_the_question(scripted: Scripted, say: Any) -> None:
    model = scripted(*steps(say, 3), say.answer("Words."), max_context=CONTEXT)
    agent = Agent(model, tools=[page], context="discard-all")
    result, rebased = await run(agent)
    assert result.output == "Words."
    prompts = prompts_of(agent)
    assert len(rebased) == 1
    assert prompts[-1] == prompts[0]


async def test_summary_puts_the_models_own_words_under_the_question(scripted: Scripted, say: Any) -> None:
    model = scripted(*steps(say, 3), say.answer("Page 0 has words."), say.answer("Words."), max_context=CONTEXT)
    agent = Agent(model, tools=[page], context="summary")
    result, (rebased,) = await run(agent)
    assert result.output == "Words."
    *_, asked, final = prompts_of(agent)
    assert "Do not call tools" in asked
    assert "PAGE2" in asked
    assert "Page 0 has words." in final
    assert "PAGE" not in final
    assert rebased.usage.completion_tokens > 0
    assert result.usage.completion_tokens > sum(step.completion.usage.completion_tokens for step in result.steps)


async def test_without_a_strategy_a_full_context_ends_the_run(scripted: Scripted, say: Any) -> None:
    model = scripted(*steps(say, 9), max_context=CONTEXT)
    result, rebased = await run(Agent(model, tools=[page], context="none"))
    assert result.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert "the context holds 1800" in result.stop_detail
    assert not rebased
    assert len(result.transcript) >= CONTEXT


async def test_call_numbers_stay_unique_after_a_rebase(scripted: Scripted, say: Any) -> None:
    model = scripted(*steps(say, 8), say.answer("Words."), max_context=CONTEXT)
    result, _ = await run(Agent(model, tools=[page], context="discard-75%"))
    ids = [call["id"] for call in result.tool_calls]
    assert len(ids) == len(set(ids)) == 8


async def test_a_rebase_is_journaled_and_replayed(scripted: Scripted, say: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    script = [*steps(say, 5), say.answer("A summary."), say.answer("Words.")]
    for strategy in ("discard-75%", "discard-all", "summary"):
        model = scripted(*script, *script, max_context=CONTEXT)
        async with Agent(model, tools=[page], context=strategy).session(path) as session:
            before = await session.run("What is on the pages?")
        assert "rebased" in {record["type"] for record in read_journal(path).records}
        async with Session.resume(path, model=scripted(max_context=CONTEXT), tools=[page]) as session:
            after = await session.run()
        assert after.transcript.ids == before.transcript.ids
        assert after.steps == before.steps
        path.unlink()


async def test_a_question_too_long_for_the_context_is_an_overflow(scripted: Scripted, say: Any) -> None:
    result = await Agent(scripted(say.answer("never said"), max_context=100)).run("word " * 200)
    assert result.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert result.output == ""
