"""LocalGenerator: the engine's tokens reach any task of any event loop, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
import torch

from v32.model_runtime.engine import Engine
from v32.model_runtime.errors import ContextOverflowError, GeneratorError
from v32.model_runtime.generators.generator import Finished, SamplingParams, Token
from v32.model_runtime.generators.local import LocalGenerator
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

if TYPE_CHECKING:
    from conftest import Oracle

GREEDY = SamplingParams(temperature=0, max_new_tokens=12)
ENDLESS = SamplingParams(temperature=0)


@pytest.fixture
def engine(model: DeepseekV32ForCausalLM) -> Engine:
    return Engine(model)


@pytest.fixture
def generator(engine: Engine) -> Iterator[LocalGenerator]:
    generator = LocalGenerator(engine)
    yield generator
    anyio.run(generator.aclose)


async def collect(generator: LocalGenerator, prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    events = [event async for event in generator.generate(prompt, params)]
    assert isinstance(events.pop(), Finished)
    return [event.id for event in events if isinstance(event, Token)]


def wait_until_idle(engine: Engine) -> None:
    """Cancelled sequences are gone within a step or two."""
    deadline = time.monotonic() + 60
    while engine.has_work:
        assert time.monotonic() < deadline, "the engine goes on"
        time.sleep(0.002)


def test_tokens_arrive_in_order_and_end_with_one_finished(generator: LocalGenerator, oracle: Oracle) -> None:
    prompt = oracle.random_ids(30)
    assert anyio.run(collect, generator, prompt) == oracle.generate(prompt, GREEDY)


def test_many_tasks_many_loops_many_threads(generator: LocalGenerator, oracle: Oracle) -> None:
    prompts = [oracle.random_ids(20 + seed, seed=seed) for seed in range(6)]
    expected = [oracle.generate(prompt, GREEDY) for prompt in prompts]
    results: dict[int, list[list[int]]] = {}

    async def all_at_once() -> list[list[int]]:
        return list(await asyncio.gather(*(collect(generator, prompt) for prompt in prompts)))

    def one_thread(number: int) -> None:
        results[number] = anyio.run(all_at_once)

    threads = [threading.Thread(target=one_thread, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {0: expected, 1: expected, 2: expected}
    assert anyio.run(all_at_once) == expected


def test_leaving_early_cancels(generator: LocalGenerator, engine: Engine, oracle: Oracle) -> None:
    async def leave() -> None:
        stream = generator.generate(oracle.random_ids(30), ENDLESS)
        assert isinstance(await anext(stream), Token)
        await stream.aclose()

    anyio.run(leave)
    wait_until_idle(engine)
    assert engine.pool.num_used == len(engine.prefix_cache)


def test_a_cancelled_task_cancels(generator: LocalGenerator, engine: Engine, oracle: Oracle) -> None:
    async def time_out() -> None:
        with anyio.move_on_after(0.1) as scope:
            await collect(generator, oracle.random_ids(30), SamplingParams(temperature=0))
        assert scope.cancelled_caught

    anyio.run(time_out)
    wait_until_idle(engine)
    assert engine.pool.num_used == len(engine.prefix_cache)


def test_a_vanished_event_loop_cancels(generator: LocalGenerator, engine: Engine, oracle: Oracle) -> None:
    loop = asyncio.new_event_loop()
    stream = generator.generate(oracle.random_ids(30), ENDLESS)
    loop.run_until_complete(anext(stream))
    loop.close()
    wait_until_idle(engine)


def test_bad_requests_fail_alone(generator: LocalGenerator, oracle: Oracle) -> None:
    async def requests() -> None:
        good = asyncio.ensure_future(collect(generator, oracle.random_ids(30)))
        with pytest.raises(ContextOverflowError):
            await collect(generator, [1] * 70000)
        with pytest.raises(ValueError, match="the prompt is empty"):
            await collect(generator, [])
        assert len(await good) == 12

    anyio.run(requests)


class FailingModel(DeepseekV32ForCausalLM):
    """A model that fails while `is_broken`."""

    def __init__(self, model: DeepseekV32ForCausalLM) -> None:
        torch.nn.Module.__init__(self)
        self.model, self.config, self.lm_head = model.model, model.config, model.lm_head
        self.is_broken = False

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.is_broken:
            raise MemoryError("no room for the logits")
        return super().compute_logits(hidden)


def test_an_engine_failure_reaches_every_waiter_and_the_next_one_is_served(
    model: DeepseekV32ForCausalLM, oracle: Oracle
) -> None:
    failing = FailingModel(model)
    engine = Engine(failing)
    generator = LocalGenerator(engine)
    prompts = [oracle.random_ids(20, seed=seed) for seed in range(3)]

    async def all_fail() -> None:
        failing.is_broken = True
        outcomes = await asyncio.gather(*(collect(generator, p) for p in prompts), return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, GeneratorError)
            assert "MemoryError: no room for the logits" in str(outcome)
            assert isinstance(outcome.__cause__, MemoryError)
        failing.is_broken = False
        assert await collect(generator, prompts[0]) == oracle.generate(prompts[0], GREEDY)
        await generator.aclose()

    anyio.run(all_fail)


def test_closing_ends_what_runs_and_refuses_what_comes(engine: Engine, oracle: Oracle) -> None:
    generator = LocalGenerator(engine)

    async def close() -> None:
        stream = generator.generate(oracle.random_ids(30), ENDLESS)
        await anext(stream)
        await generator.aclose()
        with pytest.raises(RuntimeError, match="closed while it generated"):
            async for _ in stream:
                pass
        with pytest.raises(RuntimeError, match="the generator is closed"):
            await collect(generator, [1])
        await generator.aclose()

    anyio.run(close)
    assert not engine.pool.layers


def test_an_unused_generator_closes(engine: Engine) -> None:
    anyio.run(LocalGenerator(engine).aclose)
    assert not engine.pool.layers


def test_the_thread_sleeps_when_idle_and_ends_with_the_generator(engine: Engine, oracle: Oracle) -> None:
    generator = LocalGenerator(engine)
    anyio.run(collect, generator, oracle.random_ids(5))
    worker = generator._worker
    wait_until_idle(engine)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05
    del generator
    gc.collect()
    worker.join(60)
    assert not worker.is_alive()


@pytest.mark.slow
def test_the_interpreter_exits_cleanly_in_the_middle_of_a_generation() -> None:
    program = """
import anyio
from tests.model_runtime.engine.conftest import CONFIG
from v32.model_runtime.engine import Engine
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.generators.local import LocalGenerator
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

model = DeepseekV32ForCausalLM(CONFIG)
for parameter in model.parameters():
    parameter.data.normal_(0, 0.1)
generator = LocalGenerator(Engine(model))

async def start():
    global stream
    stream = generator.generate([1, 2, 3], SamplingParams())
    await anext(stream)

with anyio.from_thread.start_blocking_portal() as portal:
    portal.call(start)
    print("started")
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_description_is_plain_data(generator: LocalGenerator) -> None:
    description = generator.describe()
    assert description["generator"] == "local"
    assert description["dtype"] == "float32"
    assert description["max_context"] == generator.max_context == 65536
