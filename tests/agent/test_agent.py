"""The agent itself: what it refuses, what it asks of the model, and how programs without an event loop use it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import pytest

from v32.agent import Agent, Limits
from v32.agent.sampling import seed_of_turn
from v32.model_runtime import SamplingParams, ToolsNotSupportedError
from v32.model_runtime.checkpoint.variant import VariantInfo
from v32.tools import ToolDefinitionError, tool

Scripted = Callable[..., Any]


@tool(in_worker=False)
def double(number: int) -> int:
    """Twice a number."""
    return 2 * number


def test_speciale_refuses_tools_at_construction_and_answers_without(scripted: Scripted, say: Any) -> None:
    speciale = VariantInfo("speciale", "given as variant=")
    with pytest.raises(ToolsNotSupportedError, match=r"V3\.2-Speciale .*variant='v3\.2'"):
        Agent(scripted(variant=speciale), tools=[double])
    assert Agent(scripted(say.answer("4"), variant=speciale)).run_sync("Twice 2?").output == "4"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tools": [double, double]}, ToolDefinitionError, "two tools are named 'double'"),
        ({"tools": [print]}, ToolDefinitionError, "is not a tool; decorate a function with @tool"),
        ({"tools": [double], "tool_choice": "triple"}, ValueError, "'triple' is no offered tool; offered: double"),
        ({"tool_choice": "required"}, ValueError, "tool_choice is 'required', but no tools are offered"),
        ({"max_parallel_calls": 0}, ValueError, "max_parallel_calls is 0"),
        ({"context": "forget"}, ValueError, "unknown context strategy 'forget'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    scripted: Scripted, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Agent(scripted(), **options)


def test_run_sync_works_again_and_again_with_tools_that_keep_something_open(scripted: Scripted, say: Any) -> None:
    lock = asyncio.Lock()

    @tool
    async def locked() -> str:
        """Use something that belongs to one event loop."""
        async with lock:
            await asyncio.sleep(0)
            return "ok"

    agent = Agent(scripted(*[say.calls(("locked", {}), ("locked", {})), say.answer("done")] * 2), tools=[locked])
    for _ in range(2):
        result = agent.run_sync("Go.")
        assert [r.text for r in result.steps[0].results] == ["ok", "ok"]


@pytest.mark.filterwarnings("error")
def test_an_agent_given_up_where_another_loop_runs_still_closes_its_own(scripted: Scripted, say: Any) -> None:
    left = []

    @tool
    async def keep_busy() -> None:
        """Leave a task behind."""
        left.append(asyncio.create_task(asyncio.sleep(3600)))

    agents = [Agent(scripted(say.calls(("keep_busy", {})), say.answer("done")), tools=[keep_busy])]
    agents[0].run_sync("Go.")

    async def give_up() -> None:
        agents.clear()
        gc.collect()

    asyncio.run(give_up())
    deadline = time.monotonic() + 60
    while not left[0].get_loop().is_closed() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left[0].get_loop().is_closed()
    assert left[0].cancelled()


def test_every_turn_draws_from_a_seed_of_its_own_that_repeats(scripted: Scripted, say: Any) -> None:
    script = [say.calls(("double", {"number": 1})), say.calls(("double", {"number": 2})), say.answer("done")]
    seeds = []
    for _ in range(2):
        model = scripted(*script)
        Agent(model, tools=[double], params=SamplingParams(seed=7)).run_sync("Go.")
        seeds.append([params.seed for params in model.generator.params])
    assert seeds[0] == seeds[1] == [seed_of_turn(7, turn) for turn in range(3)]
    assert len(set(seeds[0])) == 3


def test_the_token_limit_bounds_each_completion_by_what_is_left(scripted: Scripted, say: Any) -> None:
    model = scripted(say.calls(("double", {"number": 1})), say.answer("word " * 500))
    result = Agent(model, tools=[double], limits=Limits(tokens=200)).run_sync("Go.")
    first, second = (params.max_new_tokens for params in model.generator.params)
    assert first == 200
    assert second == 200 - result.steps[0].completion.usage.completion_tokens
    assert result.usage.completion_tokens == 200
    assert result.stop_reason == "length"


@pytest.mark.slow
def test_a_demanded_call_is_demanded_in_the_first_turn_only(scripted: Scripted, say: Any) -> None:
    """With the grammar on: `required` forbids an answer at first, and must not forbid it afterwards."""
    model = scripted(say.calls(("double", {"number": 1})), say.answer("2"), grammar=True)
    model.generator._obeys_grammar = True
    agent = Agent(model, tools=[double], tool_choice="double")
    assert agent.run_sync("Twice 1?").output == "2"


def test_the_developer_role_carries_tools_and_instructions(scripted: Scripted, say: Any) -> None:
    model = scripted(say.answer("2"))
    agent = Agent(model, tools=[double], instructions="Be brief.", role="developer")
    result = agent.run_sync("Twice 1?")
    assert result.messages[0]["role"] == "developer"
    prompt = model.tokenizer.decode(model.generator.prompts[0])
    assert prompt.index("<functions>") < prompt.index("# The user's message is: Twice 1?")
    assert "Be brief." in prompt


def test_every_public_name_can_be_imported() -> None:
    import v32.agent

    assert {name: getattr(v32.agent, name) for name in v32.agent.__all__}
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        _ = v32.agent.Agnet
