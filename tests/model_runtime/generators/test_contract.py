"""What every token generator guarantees: the engine, a script, vLLM, SGLang."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from v32.model_runtime.errors import ContextOverflowError
from v32.model_runtime.generators import Finished, SamplingParams, Token, TokenGenerator

PROMPT = [0, 5, 6, 7, 8, 9, 10]
GREEDY = SamplingParams(temperature=0, max_new_tokens=12)

pytestmark = pytest.mark.anyio


async def run(
    generator: TokenGenerator, params: SamplingParams, prompt: Sequence[int] = PROMPT
) -> tuple[list[Token], Finished]:
    events = [event async for event in generator.generate(prompt, params)]
    *tokens, finished = events
    assert all(isinstance(token, Token) for token in tokens)
    assert isinstance(finished, Finished)
    return tokens, finished  # type: ignore[return-value]


async def test_tokens_come_in_order_and_one_finished_ends_them(generator: TokenGenerator) -> None:
    tokens, finished = await run(generator, GREEDY)
    assert len(tokens) == 12
    assert finished.reason == "length"
    assert finished.prompt_tokens == len(PROMPT)
    assert 0 <= finished.cached_tokens < len(PROMPT)
    again, _ = await run(generator, GREEDY)
    assert [token.id for token in again] == [token.id for token in tokens]


async def test_a_stop_token_is_the_last_one(generator: TokenGenerator) -> None:
    ids = [token.id for token in (await run(generator, GREEDY))[0]]
    stop_id = ids[3]
    tokens, finished = await run(generator, SamplingParams(temperature=0, max_new_tokens=12, stop_token_ids=(stop_id,)))
    assert [token.id for token in tokens] == ids[: ids.index(stop_id) + 1]
    assert finished.reason == "stop"


async def test_logprobs_come_when_asked_for(generator: TokenGenerator) -> None:
    tokens, _ = await run(generator, SamplingParams(temperature=0, max_new_tokens=5, logprobs=True))
    assert all(token.logprob is not None and token.logprob <= 0 for token in tokens)
    tokens, _ = await run(generator, GREEDY)
    assert all(token.logprob is None for token in tokens)


async def test_without_a_limit_the_context_is_filled(generator: TokenGenerator) -> None:
    room = 9
    prompt = [5] * (generator.max_context - room)
    tokens, finished = await run(generator, SamplingParams(temperature=0), prompt)
    assert len(tokens) == room
    assert finished.reason == "length"


async def test_a_prompt_without_room_is_refused_before_the_first_token(generator: TokenGenerator) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        await run(generator, GREEDY, [5] * generator.max_context)
    assert caught.value.max_context == generator.max_context


async def test_it_can_be_left_early(generator: TokenGenerator) -> None:
    events = generator.generate(PROMPT, GREEDY)
    async for _ in events:
        break
    await events.aclose()
    assert len((await run(generator, GREEDY))[0]) == 12


async def test_closed_it_generates_no_more(generator: TokenGenerator) -> None:
    await generator.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await run(generator, GREEDY)


def test_it_says_what_it_is(generator: TokenGenerator) -> None:
    described = generator.describe()
    assert described.keys() >= {"generator", "name", "fingerprint", "dtype", "device", "max_context"}
    assert described["max_context"] == generator.max_context
