"""The loop: real encoder, parser, tools and validation above a scripted engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from v32.agent import (
    Agent,
    Completed,
    Limits,
    RunResult,
    Stopped,
    StopReason,
    ToolFinished,
    ToolsReturned,
    ToolStarted,
    UserSaid,
)
from v32.model_runtime.chat import ChatModel
from v32.model_runtime.encoding import ChatTokenizer
from v32.model_runtime.generators.scripted import ScriptedGenerator
from v32.model_runtime.messages import ContentDelta, ReasoningDelta
from v32.sandboxes.errors import SandboxUnavailable
from v32.tools import ToolError, tool

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Any]


@tool(in_worker=False)
def population(city: str) -> int:
    """Number of inhabitants of a city."""
    if city == "Atlantis":
        raise ToolError("unknown city 'Atlantis'")
    if city == "Crash":
        raise RuntimeError("the database is gone")
    return {"Paris": 2_100_000, "Rome": 2_750_000}[city]


async def test_a_question_a_call_an_answer(scripted: Scripted, say: Any) -> None:
    model = scripted(say.calls(("population", {"city": "Paris"})), say.answer("2.1 million"))
    result = await Agent(model, tools=[population]).run("How many people live in Paris?")
    assert result.output == "2.1 million"
    assert result.stop_reason is StopReason.ANSWER
    assert [message["role"] for message in result.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert result.messages[-2]["content"] == "2100000"
    assert result.usage.tool_calls == 1
    assert result.usage.completion_tokens > result.usage.reasoning_tokens > 0
    assert result.tool_calls == [
        {"id": "call_0", "name": "population", "arguments": {"city": "Paris"}, "outcome": "ok"},
    ]


async def test_the_second_prompt_is_the_first_with_something_added(scripted: Scripted, say: Any) -> None:
    model = scripted(say.calls(("population", {"city": "Paris"})), say.answer("2.1 million"))
    await Agent(model, tools=[population]).run("How many?")
    first, second = model.generator.prompts
    assert second[: len(first)] == first


@pytest.mark.parametrize(
    ("call", "outcome", "text"),
    [
        (("population", {"city": "Atlantis"}), "error", "Error: unknown city 'Atlantis'"),
        (("population", {"city": "Crash"}), "crashed", "Error: population failed: RuntimeError: the database is gone"),
        (("populaton", {"city": "Paris"}), "unknown_tool", "did you mean 'population'"),
        (("population", {"town": "Paris"}), "invalid_arguments", "Error: invalid arguments for population"),
        (("population", {"city": 5}), "invalid_arguments", "expected string, got integer 5"),
    ],
)
async def test_what_goes_wrong_is_told_to_the_model_and_its_sibling_goes_on(
    scripted: Scripted, say: Any, call: tuple[str, dict[str, Any]], outcome: str, text: str
) -> None:
    model = scripted(say.calls(call, ("population", {"city": "Rome"})), say.answer("I tried."))
    result = await Agent(model, tools=[population]).run("How many?")
    failed, sibling = result.steps[0].results
    assert failed.outcome == outcome
    assert text in failed.text
    assert sibling.text == "2750000"
    assert result.output == "I tried."


async def test_a_malformed_call_gets_a_reason_and_a_hint(scripted: Scripted, say: Any) -> None:
    whole = say.calls(("population", {"city": "Paris"}))
    model = scripted(whole.replace(' string="true"', ""), say.answer("Sorry."))
    result = await Agent(model, tools=[population]).run("How many?")
    if result.steps[0].results[0].outcome == "malformed":
        reason, hint = result.steps[0].results[0].text.split("\n", 1)
        assert reason.startswith("Error: ")
        assert hint


async def test_calls_run_at_the_same_time_and_results_stand_in_call_order(scripted: Scripted, say: Any) -> None:
    finished = [anyio.Event() for _ in range(4)]
    finished[3].set()

    @tool
    async def wait(number: int) -> str:
        """Wait for the next one."""
        await finished[number + 1].wait()
        finished[number].set()
        return f"waited {number}"

    model = scripted(say.calls(*[("wait", {"number": number}) for number in range(3)]), say.answer("done"))
    with anyio.fail_after(60):
        result = await Agent(model, tools=[wait]).run("Wait.")
    assert [r.text for r in result.steps[0].results] == ["waited 0", "waited 1", "waited 2"]


async def test_no_more_calls_run_at_once_than_allowed(scripted: Scripted, say: Any) -> None:
    running = most = 0

    @tool
    async def count() -> None:
        """Count."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.01)
        running -= 1

    model = scripted(say.calls(*[("count", {})] * 7), say.answer("done"))
    await Agent(model, tools=[count], max_parallel_calls=2).run("Count.")
    assert most == 2


async def test_a_call_that_hangs_is_stopped_and_its_sibling_is_not(scripted: Scripted, say: Any) -> None:
    @tool(timeout=0.3)
    def hang() -> None:
        """Hang."""
        while True:
            time.sleep(1)

    model = scripted(say.calls(("hang", {}), ("population", {"city": "Paris"})), say.answer("done"))
    result = await Agent(model, tools=[hang, population]).run("Go.")
    assert [r.outcome for r in result.steps[0].results] == ["timeout", "ok"]
    assert result.steps[0].results[0].text == "Error: hang took longer than 0.3 s and was stopped"


async def test_events_come_in_order_and_the_result_is_last(scripted: Scripted, say: Any) -> None:
    model = scripted(say.calls(("population", {"city": "Paris"})), say.answer("2.1 million"))
    items = [item async for item in Agent(model, tools=[population]).stream("How many?")]
    durable = (UserSaid, Completed, ToolStarted, ToolFinished, ToolsReturned, Stopped, RunResult)
    assert [type(item) for item in items if isinstance(item, durable)] == [
        UserSaid, Completed, ToolStarted, ToolFinished, ToolsReturned, Completed, Stopped, RunResult,
    ]  # fmt: skip
    assert "".join(item.text for item in items if isinstance(item, ContentDelta)) == "2.1 million"
    assert "".join(item.text for item in items if isinstance(item, ReasoningDelta)) == "I look it up.I know this."


async def test_reasoning_stays_between_calls_and_goes_with_the_next_user_message(scripted: Scripted, say: Any) -> None:
    model = scripted(
        say.calls(("population", {"city": "Paris"}), reasoning="FIRST"),
        say.answer("2.1 million", reasoning="SECOND"),
        say.answer("Yes.", reasoning="THIRD"),
    )
    async with Agent(model, tools=[population]).session() as session:
        await session.run("How many?")
        await session.run("Sure?")
    prompts = [session.transcript.tokenizer.decode(prompt) for prompt in model.generator.prompts]
    assert "FIRST" in prompts[1]
    assert "FIRST" not in prompts[2]
    assert "SECOND" not in prompts[2]
    assert "2.1 million" in prompts[2]
    assert "2100000" in prompts[2]


async def test_limits_end_the_run_with_their_name(scripted: Scripted, say: Any) -> None:
    call = say.calls(("population", {"city": "Paris"}))
    result = await Agent(scripted(*[call] * 9), tools=[population], limits=Limits(turns=3)).run("How many?")
    assert result.stop_reason is StopReason.TURN_LIMIT
    assert result.stop_detail == "3 of 3 turns"
    assert len(result.steps) == 3


async def test_after_the_last_allowed_call_the_model_is_asked_for_its_answer(scripted: Scripted, say: Any) -> None:
    call = say.calls(("population", {"city": "Paris"}))
    agent = Agent(scripted(call, call, say.answer("2.1 million")), tools=[population], limits=Limits(tool_calls=2))
    assert (await agent.run("How many?")).output == "2.1 million"


async def test_calls_beyond_the_limit_are_not_run(scripted: Scripted, say: Any) -> None:
    runs: list[int] = []

    @tool(in_worker=False)
    def note(number: int) -> None:
        """Note a number."""
        runs.append(number)

    model = scripted(say.calls(*[("note", {"number": n}) for n in range(4)]), say.answer("ok"))
    result = await Agent(model, tools=[note], limits=Limits(tool_calls=2)).run("Go.")
    assert sorted(runs) == [0, 1]
    assert [r.outcome for r in result.steps[0].results] == ["ok", "ok", "over_limit", "over_limit"]
    assert result.stop_reason is StopReason.ANSWER


async def test_nothing_but_refused_calls_ends_the_run(scripted: Scripted, say: Any) -> None:
    model = scripted(*[say.calls(("nonsense", {}))] * 9)
    result = await Agent(model, tools=[population], limits=Limits(refused_turns=3)).run("Go.")
    assert result.stop_reason is StopReason.REFUSED_CALLS
    assert len(result.steps) == 3


async def test_the_time_limit_stops_a_tool_and_returns(scripted: Scripted, say: Any) -> None:
    @tool
    async def forever() -> None:
        """Never ends."""
        await anyio.sleep_forever()

    model = scripted(say.calls(("forever", {}), ("population", {"city": "Paris"})), say.answer("never said"))
    result = await Agent(model, tools=[forever, population], limits=Limits(seconds=0.4)).run("Go.")
    assert result.stop_reason is StopReason.TIME_LIMIT
    assert [r.outcome for r in result.steps[0].results] == ["cancelled", "ok"]


async def test_a_turn_without_words_is_not_an_answer(scripted: Scripted, say: Any) -> None:
    result = await Agent(scripted(say.answer(""))).run("Say nothing.")
    assert result.stop_reason is StopReason.EMPTY


async def test_a_result_that_is_too_large_for_the_context_is_cut(scripted: Scripted, say: Any) -> None:
    @tool(in_worker=False)
    def much() -> str:
        """A lot of text."""
        return "word " * 3000

    model = scripted(say.calls(("much", {})), say.answer("done"), max_context=4000)
    result = await Agent(model, tools=[much]).run("Go.")
    text = result.steps[0].results[0].text
    assert len(result.transcript.tokenizer.encode_text(text)) <= 1000
    assert "characters left out" in text


async def test_the_time_limit_stops_a_completion_and_the_session_goes_on(tokenizer: ChatTokenizer, say: Any) -> None:
    script = [say.answer("word " * 1000), say.answer("ok")]
    model = ChatModel(ScriptedGenerator(tokenizer, script, seconds_per_token=0.005), tokenizer, grammar=False)
    async with Agent(model, limits=Limits(seconds=0.3)).session() as session:
        result = await session.run("Write much.")
        assert result.stop_reason is StopReason.TIME_LIMIT
        assert result.steps == ()
        assert (await session.run("Again.")).output == "ok"


async def test_a_machine_that_fails_raises_after_the_siblings_have_ended(scripted: Scripted, say: Any) -> None:
    @tool
    async def sandboxed() -> None:
        """Needs a sandbox."""
        raise SandboxUnavailable("no sandbox works here; install bubblewrap")

    @tool
    async def slow() -> str:
        """Takes a while."""
        await anyio.sleep(0.2)
        return "finished"

    model = scripted(say.calls(("sandboxed", {}), ("slow", {})), say.answer("I could not."))
    async with Agent(model, tools=[sandboxed, slow]).session() as session:
        with pytest.raises(SandboxUnavailable, match="install bubblewrap"):
            await session.run("Go.")
        assert session.is_interrupted
        result = await session.run()
    assert [r.outcome for r in result.steps[0].results] == ["interrupted", "ok"]
    assert result.output == "I could not."
