"""Prefilling ahead: a prompt that was expected finds its beginning computed, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import anyio
import pytest
import torch

from v32.model_runtime.engine import Engine
from v32.model_runtime.engine.ahead import FIRST_STEP, STEP_SECONDS, Ahead
from v32.model_runtime.generators.generator import Finished, PrefillsAhead, SamplingParams, Token
from v32.model_runtime.generators.local import LocalGenerator
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

if TYPE_CHECKING:
    from conftest import Oracle

GREEDY = SamplingParams(temperature=0, max_new_tokens=8)
PAGE_BYTES = 64 * 3 * (20 + 8 + 16) * 4


def generate(engine: Engine, prompt: list[int]) -> tuple[list[int], Finished]:
    sequence = engine.add(prompt, GREEDY)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    assert isinstance(sequence.last_event, Finished)
    return sequence.token_ids[len(prompt) :], sequence.last_event


def work_ahead(engine: Engine) -> int:
    """Steps until nothing is wanted."""
    steps = 0
    while engine.has_work_ahead:
        engine.step_ahead()
        engine.check_integrity()
        steps += 1
    return steps


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_an_expected_prompt_costs_its_own_tokens_only(
    model: DeepseekV32ForCausalLM, oracle: Oracle, length: int
) -> None:
    engine = Engine(model)
    history, message = oracle.random_ids(length), oracle.random_ids(7, seed=1)
    engine.prefill_ahead("session", history)
    assert not engine.has_work  # nobody has to step for it
    work_ahead(engine)
    tokens, finished = generate(engine, [*history, *message])
    assert (finished.cached_tokens, finished.ahead_tokens) == (length, length)
    assert tokens == oracle.generate([*history, *message], GREEDY)


def test_what_was_not_finished_counts_as_far_as_it_came(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model)
    history = oracle.random_ids(300)
    generate(engine, history[:50])
    engine.prefill_ahead("session", history)
    engine.step_ahead()
    tokens, finished = generate(engine, [*history, 5])
    assert finished.cached_tokens == 50 + finished.ahead_tokens
    assert 0 < finished.ahead_tokens <= FIRST_STEP
    assert tokens == oracle.generate([*history, 5], GREEDY)
    assert work_ahead(engine) == 1  # all of it is cached by now
    assert generate(engine, [*history, 6])[1].ahead_tokens == 0  # credited once


def test_the_newest_wish_of_an_owner_counts(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model)
    first, second, other = (oracle.random_ids(100, seed=seed) for seed in (1, 2, 3))
    engine.prefill_ahead("a", first)
    engine.prefill_ahead("b", other)
    engine.prefill_ahead("a", second)
    work_ahead(engine)
    assert [engine.prefix_cache.match_length([*ids, 0]) for ids in (first, second, other)] == [0, 100, 100]
    engine.prefill_ahead("a", first)
    engine.ahead.forget("a")
    assert not engine.has_work_ahead


def test_it_takes_no_memory_from_those_who_work(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model, kv_budget_bytes=3 * PAGE_BYTES)
    prompt = oracle.random_ids(100)
    sequence = engine.add(prompt, SamplingParams(temperature=0, max_new_tokens=20))
    engine.step()
    engine.prefill_ahead("session", oracle.random_ids(180, seed=1))
    work_ahead(engine)  # as much as fits beside the two pages in use, then it gives up
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    assert engine.scheduler.num_preemptions == 0
    assert sequence.token_ids[100:] == oracle.generate(prompt, SamplingParams(temperature=0, max_new_tokens=20))


def test_ids_beyond_the_context_are_left_out(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model, max_context=80)
    engine.prefill_ahead("session", oracle.random_ids(200))
    work_ahead(engine)
    assert engine.prefix_cache.match_length(oracle.random_ids(200)) == 79


def test_steps_are_cut_to_about_their_length() -> None:
    ahead = Ahead(max_step=512)
    ahead.want("a", range(10_000))
    for _ in range(10):
        ahead.record("a", 0, ahead.step_tokens, STEP_SECONDS / 10)
    assert ahead.step_tokens == 512
    for _ in range(10):
        ahead.record("a", 0, ahead.step_tokens, STEP_SECONDS * 2)
    assert ahead.step_tokens == 16
    ahead.record("a", 0, 5, STEP_SECONDS / 10)  # the short end of a prompt says nothing
    assert ahead.step_tokens == 16


def test_the_generator_works_ahead_only_while_nobody_waits(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model)
    engine.ahead.step_tokens = engine.ahead._max_step = 4  # so that working ahead takes far longer than a wake-up
    generator = LocalGenerator(engine)
    assert isinstance(generator, PrefillsAhead)
    history, prompt = oracle.random_ids(1000), oracle.random_ids(20, seed=1)

    async def use() -> None:
        generator.prefill_ahead("session", history)
        tokens = [event.id async for event in generator.generate(prompt, GREEDY) if isinstance(event, Token)]
        assert engine.has_work_ahead, "the prompt waited for the end of what was not urgent"
        assert tokens == oracle.generate(prompt, GREEDY)
        deadline = time.monotonic() + 60
        while engine.has_work_ahead:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        *_, finished = [event async for event in generator.generate([*history, 3], GREEDY)]
        assert isinstance(finished, Finished)
        assert (finished.cached_tokens, finished.ahead_tokens) == (1000, 1000)
        await generator.aclose()

    anyio.run(use)


def test_a_failure_ahead_is_logged_and_the_next_prompt_is_served(
    model: DeepseekV32ForCausalLM, oracle: Oracle, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(DeepseekV32ForCausalLM):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.model, self.config, self.lm_head = model.model, model.config, model.lm_head
            self.is_broken = True

        def forward(self, *batch: torch.Tensor) -> torch.Tensor:
            if self.is_broken:
                raise MemoryError("no room")
            return super().forward(*batch)

    failing = Failing()
    engine = Engine(failing)
    generator = LocalGenerator(engine)
    prompt = oracle.random_ids(20)

    async def use() -> None:
        with caplog.at_level(logging.WARNING):
            generator.prefill_ahead("session", prompt)
            generator.prefill_ahead("session", [100_000])
            while len(caplog.records) < 2:
                await asyncio.sleep(0.01)
        assert "MemoryError: no room" in caplog.text
        assert "token 100000" in caplog.text
        failing.is_broken = False
        tokens = [event.id async for event in generator.generate(prompt, GREEDY) if isinstance(event, Token)]
        assert tokens == oracle.generate(prompt, GREEDY)
        await generator.aclose()
        with pytest.raises(RuntimeError, match="the generator is closed"):
            generator.prefill_ahead("session", prompt)

    anyio.run(use)
