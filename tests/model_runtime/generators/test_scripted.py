"""The scripted generator: real ids, real grammar, told words."""

from __future__ import annotations

import pytest

from v32.model_runtime.encoding import V32, ChatTokenizer
from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.generators import Finished, SamplingParams, ScriptedGenerator, Token, TokenConstraint
from v32.model_runtime.grammar import ConstraintCompiler
from v32.model_runtime.messages import ToolSpec

pytestmark = pytest.mark.anyio
NOW = ToolSpec("now", "", {"type": "object", "properties": {}})
CALL = f"{V32.block_open}{V32.invoke_open('now')}\n{V32.invoke_close}\n{V32.block_close}"


async def tokens(generator: ScriptedGenerator, constraint: TokenConstraint | None = None) -> list[Token]:
    events = [event async for event in generator.generate([0, 7], SamplingParams(stop_token_ids=(1,)), constraint)]
    assert isinstance(events[-1], Finished)
    return events[:-1]  # type: ignore[return-value]


async def test_markers_become_control_tokens_and_the_end_is_added(tokenizer: ChatTokenizer) -> None:
    generator = ScriptedGenerator(tokenizer, ["Hm.</think>Yes.", f"No.{V32.eos}"])
    first = [token.id for token in await tokens(generator)]
    assert tokenizer.decode(first) == f"Hm.</think>Yes.{V32.eos}"
    assert tokenizer.think_close_id in first
    assert first[-1] == tokenizer.eos_id
    assert tokenizer.decode(token.id for token in await tokens(generator)) == f"No.{V32.eos}"
    assert generator.prompts == [(0, 7), (0, 7)]


async def test_a_script_that_has_run_out_is_an_error(tokenizer: ChatTokenizer) -> None:
    generator = ScriptedGenerator(tokenizer, ["One."])
    await tokens(generator)
    with pytest.raises(GeneratorError, match="no completion for generation 2"):
        await tokens(generator)


async def test_a_script_may_be_held_to_the_grammar(tokenizer: ChatTokenizer) -> None:
    constraint = ConstraintCompiler(tokenizer).compile([NOW], "required", "chat")
    written = await tokens(ScriptedGenerator(tokenizer, [CALL], obeys_grammar=True), constraint)
    assert tokenizer.decode(token.id for token in written) == CALL + V32.eos
    assert sum(token.forced for token in written) > len(written) / 2
    with pytest.raises(GeneratorError, match="the grammar forbids 'Hello', token 0 of generation 1"):
        await tokens(ScriptedGenerator(tokenizer, ["Hello."], obeys_grammar=True), constraint)
    assert await tokens(ScriptedGenerator(tokenizer, ["Hello."]), constraint)
