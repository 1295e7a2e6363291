"""Sessions: cancelling, resuming, and being used wrongly."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from v32.agent import (
    Agent,
    JournalError,
    RunResult,
    Session,
    SessionError,
    StopReason,
    ToolFinished,
    ToolStarted,
    read_journal,
)
from v32.tools import tool

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Any]


@tool(in_worker=False)
def double(number: int) -> int:
    """Twice a number."""
    return 2 * number


@tool
async def forever() -> None:
    """Never ends."""
    await anyio.sleep_forever()


async def test_cancelling_keeps_what_is_finished_and_the_session_goes_on(scripted: Scripted, say: Any) -> None:
    model = scripted(say.calls(("double", {"number": 4}), ("forever", {})), say.answer("8, I think"))
    async with Agent(model, tools=[double, forever]).session() as session:
        async for event in session.stream("Go."):
            if isinstance(event, ToolFinished):
                session.cancel()
            result = event
        assert isinstance(result, RunResult)
        assert result.stop_reason is StopReason.CANCELLED
        assert [r.outcome for r in result.steps[0].results] == ["ok", "cancelled"]
        assert (await session.run("And now?")).output == "8, I think"


async def test_a_cancelled_task_leaves_a_whole_journal(scripted: Scripted, say: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    scope = anyio.CancelScope()

    @tool
    async def stop_it() -> None:
        """Cancels the task that waits for it."""
        scope.cancel()
        await anyio.sleep_forever()

    agent = Agent(scripted(say.calls(("stop_it", {})), say.answer("ok")), tools=[stop_it], journal=path)
    with scope:
        await agent.run("Go.")
    types = [record["type"] for record in read_journal(path).records]
    assert types == ["user_said", "completed", "tool_started", "tool_finished", "tools_returned", "stopped"]
    async with agent.resume(path) as session:
        assert not session.is_interrupted
        assert (await session.run("Again.")).output == "ok"


async def test_a_cancelled_run_goes_on_without_a_prompt(scripted: Scripted, say: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    agent = Agent(scripted(say.calls(("double", {"number": 4}), ("forever", {}))), tools=[double, forever])
    async with agent.session(path) as session:
        async for event in session.stream("Go."):
            if isinstance(event, ToolFinished):
                session.cancel()
    for script in ([say.answer("8")], []):
        async with Session.resume(path, model=scripted(*script), tools=[double, forever]) as session:
            result = await session.run()
            assert (result.output, result.stop_reason, len(result.steps)) == ("8", StopReason.ANSWER, 2)


async def test_leaving_a_stream_cancels_the_run(scripted: Scripted, say: Any) -> None:
    agent = Agent(scripted(say.calls(("forever", {})), say.answer("ok")), tools=[forever])
    async with agent.session() as session:
        events = session.stream("Go.")
        async for event in events:
            if isinstance(event, ToolStarted):
                break
        await events.aclose()
        assert not session.is_interrupted
        assert (await session.run("Again.")).output == "ok"


async def test_a_resumed_session_has_the_same_transcript(scripted: Scripted, say: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    agent = Agent(scripted(say.calls(("double", {"number": 4})), say.answer("8")), tools=[double], instructions="Be.")
    async with agent.session(path) as session:
        before = await session.run("Twice 4?")
    async with Session.resume(path, model=scripted(), tools=[double]) as session:
        after = await session.run()
    assert after.transcript.ids == before.transcript.ids
    assert after.messages == before.messages
    assert after.output == before.output
    assert after.steps == before.steps


async def test_resuming_without_the_tools_or_with_another_model_is_refused(
    scripted: Scripted, say: Any, tmp_path: Path
) -> None:
    path = tmp_path / "s.jsonl"
    async with Agent(scripted(say.answer("8")), tools=[double]).session(path) as session:
        await session.run("Twice 4?")
    with pytest.raises(JournalError, match="tools that are missing here: double; pass them"):
        Session.resume(path, model=scripted())
    text = path.read_text()
    path.write_text(text.replace('"tokenizer":"', '"tokenizer":"x'))
    assert path.read_text() != text
    with pytest.raises(JournalError, match="written with another model"):
        Session.resume(path, model=scripted(), tools=[double])


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ('"session_id":', '"session":', "line 1 is no header: KeyError"),
        ('"tools":', '"tolls":', "line 1 is no header: KeyError"),
        ('"model":{', '"model":7,"was":{', "line 1 is no header: TypeError"),
        ('"type":"user_said"', '"type":"said"', "line 2 is no event: KeyError"),
        ('"detail":', '"derail":', "line 4 is no event: KeyError"),
    ],
)
async def test_a_line_that_is_json_but_no_record_is_named(
    scripted: Scripted, say: Any, tmp_path: Path, written: str, instead: str, message: str
) -> None:
    path = tmp_path / "s.jsonl"
    await Agent(scripted(say.answer("8")), journal=path).run("Go.")
    assert written in path.read_text()
    path.write_text(path.read_text().replace(written, instead))
    with pytest.raises(JournalError, match=message):
        Session.resume(path, model=scripted())


@pytest.mark.slow
async def test_a_damaged_field_is_an_error_that_names_its_line_or_does_not_matter(
    scripted: Scripted, say: Any, tmp_path: Path
) -> None:
    path = tmp_path / "s.jsonl"
    model = scripted(say.calls(("double", {"number": 4})), say.answer("8"))
    await Agent(model, tools=[double], journal=path).run("Go.")
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        for where, instead in itertools.product(places(json.loads(line)), (None, 7, [1])):
            record = inner = json.loads(line)
            for key in where[:-1]:
                inner = inner[key]
            inner[where[-1]] = instead
            path.write_text("\n".join([*lines[:number], json.dumps(record), *lines[number + 1 :]]) + "\n")
            with contextlib.suppress(JournalError):
                async with Session.resume(path, model=scripted(say.answer("8")), tools=[double]) as session:
                    await session.run()


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value inside a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (key,)
        yield from ((key, *rest) for rest in places(inner))


async def test_wrong_use_is_named(scripted: Scripted, say: Any) -> None:
    agent = Agent(scripted(say.calls(("forever", {})), say.answer("ok")), tools=[forever])
    async with agent.session() as session:
        with pytest.raises(SessionError, match="nothing to continue"):
            await session.run()
        with pytest.raises(TypeError, match="the prompt is 5; it must be a string"):
            await session.run(5)  # type: ignore[arg-type]
        async for event in session.stream("Go."):
            if isinstance(event, ToolStarted):
                with pytest.raises(SessionError, match="the session is running"):
                    await session.run("Me too.")
                session.cancel()
    with pytest.raises(SessionError, match="the session is closed"):
        await session.run("Too late.")
    with pytest.raises(SessionError, match="run_sync inside a running event loop"):
        agent.run_sync("Go.")
