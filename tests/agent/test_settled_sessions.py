"""Sessions with the embedded checkpoint: what is prefilled early or kept on disk changes no answer, only its cost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from v32.agent import Agent, Session
from v32.model_runtime import SamplingParams, load_model
from v32.tools import tool

pytestmark = [pytest.mark.slow, pytest.mark.anyio]
QUESTIONS = ["What is the population of Paris?", "And of Berlin?", "Thank you.", "And of Rome?"]
PARAMS = SamplingParams(seed=3, max_new_tokens=100)


@tool
def population(city: str) -> int:
    """Number of inhabitants of a city."""
    return 1000 * len(city)


async def converse(session: Session, questions: list[str], pause: bool) -> tuple[list[Any], list[Any]]:
    said, usages = [], []
    for question in questions:
        if pause:
            await settled(session)
        result = await session.run(question)
        said += [step.completion.token_ids for step in result.steps]
        usages.append(result.steps[0].completion.usage)
    return said, usages


async def settled(session: Session) -> None:
    engine = session.agent.model.generator._worker.engine  # type: ignore[attr-defined]
    ids = session.transcript.settled_ids()
    async with asyncio.timeout(60):
        while session.history and engine.prefix_cache.match_length([*ids, 0]) < len(ids):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("options", [{}, {"speculative": True}], ids=["plain", "speculative"])
async def test_settling_ahead_changes_no_answer_and_leaves_the_message_alone(options: dict[str, Any]) -> None:
    answers = []
    for settle_ahead in (False, True):
        model = load_model(settle_ahead=settle_ahead, **(options if settle_ahead else {}))
        async with Agent(model, tools=[population], params=PARAMS).session() as session:
            said, usages = await converse(session, QUESTIONS, settle_ahead)
            lengths = [len(session.transcript.tokenizer.encode_text(question)) for question in QUESTIONS]
        answers.append(said)
        await model.aclose()
        if settle_ahead:
            assert all(usage.ahead_tokens > 0 for usage in usages[1:])
            # The message itself, its two role markers and the opening of the thinking.
            assert [usage.prefilled_tokens for usage in usages[1:]] == [length + 3 for length in lengths[1:]]
    assert answers[0] == answers[1]


async def test_a_resumed_session_prefills_its_new_message_only(tmp_path: Path) -> None:
    journal = tmp_path / "session.jsonl"
    expected = None
    for keeps in (False, True):
        journal.unlink(missing_ok=True)
        model = load_model(keep_kv=keeps)
        agent = Agent(model, tools=[population], params=PARAMS)
        async with agent.session(journal) as session:
            await converse(session, QUESTIONS[:2], pause=False)
        await model.aclose()
        assert (tmp_path / "session.jsonl.kv").exists() == keeps
        model = load_model(settle_ahead=False)
        async with Session.resume(journal, model=model, tools=[population], params=PARAMS) as session:
            said, (usage,) = await converse(session, ["And of Rome?"], pause=False)
        await model.aclose()
        if keeps:
            assert usage.cached_tokens > 200
            assert usage.prefilled_tokens < 15
            assert said == expected
        else:
            assert usage.cached_tokens == 0
        expected = said
