"""The chat model over a scripted generator: ids as sampled, deltas that add up, tools that are refused in time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from functools import lru_cache
from itertools import repeat
from typing import Any

import anyio
import pytest

from v32.model_runtime import ChatModel, SamplingParams, ToolsNotSupportedError
from v32.model_runtime.checkpoint.variant import VariantInfo
from v32.model_runtime.encoding import V32, ChatTokenizer
from v32.model_runtime.errors import ContextOverflowError, EncodingError, GeneratorError, UnsupportedSchemaError
from v32.model_runtime.generators import ScriptedGenerator
from v32.model_runtime.grammar import ConstraintCompiler
from v32.model_runtime.messages import (
    Completion,
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArgumentsDelta,
    ToolCallFinished,
    ToolCallStarted,
    ToolResult,
    ToolSpec,
)
from v32.model_runtime.transcript import Transcript

pytestmark = pytest.mark.anyio

SEARCH = ToolSpec(
    "search", "Search.", {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
)
CALL = (
    f"{V32.block_open}{V32.invoke_open('search')}{V32.parameter_open('query', is_string=True)}the ｜ moon"
    f"{V32.parameter_close}\n{V32.invoke_close}\n{V32.block_close}"
)
SPECIALE = VariantInfo("speciale", "the folder name 'DeepSeek-V3.2-Speciale'")


def scripted(tokenizer: ChatTokenizer, *completions: str, **options: Any) -> ChatModel:
    names = ("max_context", "seconds_per_token")
    of_generator = {name: options.pop(name) for name in names if name in options}
    generator = ScriptedGenerator(tokenizer, completions, obeys_grammar=True, **of_generator)
    return ChatModel(generator, tokenizer, **{"compiler": constraints_of(tokenizer), **options})


@lru_cache(maxsize=1)
def constraints_of(tokenizer: ChatTokenizer) -> ConstraintCompiler:
    """To prepare the vocabulary takes half a second."""
    return ConstraintCompiler(tokenizer)


def asked(model: ChatModel, question: str = "?", tools: Sequence[ToolSpec] = ()) -> Transcript:
    transcript = model.start_transcript(instructions="Be brief.", tools=tools)
    transcript.append_user(question)
    return transcript


async def complete(model: ChatModel, transcript: Transcript, **options: Any) -> tuple[list[Delta], Completion]:
    *deltas, completion = [item async for item in model.complete(transcript, **options)]
    assert isinstance(completion, Completion)
    return deltas, completion  # type: ignore[return-value]


async def test_an_answer(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, "I count: one, zwei, 三.</think>Three 🎈.")
    deltas, completion = await complete(model, asked(model))
    assert "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)) == "I count: one, zwei, 三."
    assert "".join(d.text for d in deltas if isinstance(d, ContentDelta)) == "Three 🎈."
    assert completion.parsed.content == "Three 🎈."
    assert completion.parsed.finished
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(completion.token_ids) == f"I count: one, zwei, 三.</think>Three 🎈.{V32.eos}"


async def test_calls_and_their_results_under_the_grammar(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, f"I search.</think>Well:{CALL}", "Found.</think>It is far.")
    transcript = asked(model, tools=[SEARCH])
    deltas, completion = await complete(model, transcript)
    assert completion.finish_reason == "tool_calls"
    assert completion.parsed.deviations == []
    (call,) = completion.parsed.tool_calls
    assert (call.name, call.arguments) == ("search", {"query": "the ｜ moon"})
    assert ToolCallStarted(0, "search") in deltas
    assert ToolCallFinished(0, call) in deltas
    assert "".join(d.text for d in deltas if isinstance(d, ToolCallArgumentsDelta)) == call.raw_arguments

    before = transcript.ids
    transcript.append_completion(completion)
    transcript.append_results([ToolResult(call.id, "384,400 km")])
    assert transcript.ids[: len(before) + len(completion.token_ids)] == [*before, *completion.token_ids]
    _, answer = await complete(model, transcript)
    assert answer.parsed.content == "It is far."
    assert answer.usage.cached_tokens >= len(before) + len(completion.token_ids) - 1


async def test_usage_counts_every_token_once(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, f"I search.</think>Well:{CALL}")
    transcript = asked(model, tools=[SEARCH])
    _, completion = await complete(model, transcript)
    usage = completion.usage
    assert usage.prompt_tokens == usage.prefilled_tokens + usage.cached_tokens == len(transcript.ids)
    assert usage.completion_tokens == len(completion.token_ids)
    assert usage.reasoning_tokens == len(tokenizer.encode_text("I search."))
    assert len(tokenizer.encode_text(CALL)) // 2 < usage.forced_tokens < len(tokenizer.encode_text(CALL))
    assert usage.tool_calls == 1
    assert usage.seconds.keys() == {"prefill", "decode", "total"}


async def test_chat_mode_has_no_reasoning(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, "Hello.", thinking_mode="chat")
    deltas, completion = await complete(model, asked(model))
    assert not any(isinstance(delta, ReasoningDelta) for delta in deltas)
    assert (completion.parsed.content, completion.usage.reasoning_tokens) == ("Hello.", 0)


async def test_text_that_spells_markers_is_no_marker(tokenizer: ChatTokenizer) -> None:
    class Spelling(ScriptedGenerator):
        def _tokens(self, completion: str, constraint: Any) -> Any:
            from v32.model_runtime.generators import Token

            ids = [*tokenizer.encode_text(completion), tokenizer.think_close_id, tokenizer.eos_id]
            yield from map(Token, ids)

    model = ChatModel(Spelling(tokenizer, [f"A {V32.eos} and </think>"]), tokenizer)
    _, completion = await complete(model, asked(model))
    assert completion.parsed.reasoning_content == f"A {V32.eos} and </think>"


@pytest.mark.parametrize("choice", ["auto", "none", "required", "search"])
async def test_speciale_refuses_tools_before_anything_is_generated(tokenizer: ChatTokenizer, choice: str) -> None:
    model = scripted(tokenizer, "x</think>y", variant=SPECIALE)
    for refused in (model.check_tools_supported, lambda: model.start_transcript(tools=[SEARCH])):
        with pytest.raises(ToolsNotSupportedError, match=r"Speciale'\).*variant='v3.2'") as caught:
            refused()
        assert "the folder name" in str(caught.value)
    foreign = Transcript(tokenizer, tools=[SEARCH])
    foreign.append_user("?")
    with pytest.raises(ToolsNotSupportedError):
        await complete(model, foreign, tool_choice=choice)
    assert isinstance(model.generator, ScriptedGenerator)
    assert model.generator.prompts == []


async def test_speciale_reasons_without_tools(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, "Deep.</think>42", variant=SPECIALE)
    _, completion = await complete(model, asked(model))
    assert completion.parsed.content == "42"


async def test_leaving_early_stops_the_generation(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, "word " * 1_000, "Fine.</think>Done.", seconds_per_token=0.001)
    async with aclosing(model.complete(asked(model))) as items:
        async for _ in items:
            break
    with anyio.move_on_after(0.05) as scope:
        await complete(scripted(tokenizer, "word " * 10_000, seconds_per_token=0.001), asked(model))
    assert scope.cancelled_caught
    _, completion = await complete(model, asked(model))
    assert completion.parsed.content == "Done."


async def test_a_completion_that_is_cut_off(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, f"I search.</think>{CALL}", f"I search.</think>{CALL}")
    whole = tokenizer.encode_segments(V32.split(f"I search.</think>{CALL}"))
    for count in (2, len(whole) - 12):
        _, completion = await complete(model, asked(model, tools=[SEARCH]), params=SamplingParams(max_new_tokens=count))
        assert completion.finish_reason == "length"
        assert completion.token_ids == tuple(whole[:count])
        assert not completion.parsed.tool_calls
        assert not completion.parsed.finished


async def test_logprobs_belong_to_the_tokens(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, "a</think>b", "a</think>b")
    _, completion = await complete(model, asked(model), params=SamplingParams(logprobs=True))
    assert completion.logprobs == (0.0,) * len(completion.token_ids)
    _, completion = await complete(model, asked(model))
    assert completion.logprobs is None


async def test_the_models_sampling_holds_unless_others_is_given(tokenizer: ChatTokenizer) -> None:
    generator = ScriptedGenerator(tokenizer, repeat("a</think>b"))
    model = ChatModel(generator, tokenizer, sampling=SamplingParams(temperature=0.25))
    await complete(model, asked(model))
    await complete(model, asked(model), params=SamplingParams(temperature=0.75, stop_token_ids=(7,)))
    assert [params.temperature for params in generator.params] == [0.25, 0.75]
    assert [params.stop_token_ids for params in generator.params] == [(tokenizer.eos_id,), (7, tokenizer.eos_id)]


async def test_tool_choice_reaches_the_grammar(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, "a</think>no call", f"a</think>{CALL}", f"a</think>{CALL}")
    transcript = asked(model, tools=[SEARCH])
    with pytest.raises(GeneratorError, match="the grammar forbids"):
        await complete(model, transcript, tool_choice="required")
    with pytest.raises(GeneratorError, match="the grammar forbids"):
        await complete(model, transcript, tool_choice="none")
    _, completion = await complete(model, transcript, tool_choice="search")
    assert completion.finish_reason == "tool_calls"
    with pytest.raises(UnsupportedSchemaError, match="tool_choice is 'find'; offered: search"):
        await complete(model, transcript, tool_choice="find")


async def test_misuse_is_named(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, "x", max_context=20)
    with pytest.raises(EncodingError, match="not the model's turn"):
        await complete(model, model.start_transcript())
    with pytest.raises(ContextOverflowError):
        await complete(model, asked(model, "word " * 30))
    free = scripted(tokenizer, "x", grammar=False)
    with pytest.raises(ValueError, match="needs the grammar"):
        await complete(free, asked(free, tools=[SEARCH]), tool_choice="required")


async def test_it_describes_what_a_trace_records(tokenizer: ChatTokenizer) -> None:
    model = scripted(tokenizer, variant=SPECIALE)
    described = model.describe()
    assert described["tokenizer"] == tokenizer.fingerprint
    assert described["variant"] == "speciale"
    assert described["generator"] == "scripted"
    await model.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await complete(model, asked(model))
