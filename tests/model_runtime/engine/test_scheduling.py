"""Who runs when: everyone gets on, whatever the others do, and the order changes no token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model_runtime.engine.test_speculative import with_drafts
from v32.model_runtime.engine import Engine
from v32.model_runtime.engine import Sequence as EngineSequence
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

if TYPE_CHECKING:
    from conftest import Oracle

FEW = SamplingParams(temperature=0, max_new_tokens=2)
PAGE_BYTES = 64 * 4 * (20 + 8 + 16) * 4


def is_prefilled(sequence: EngineSequence) -> bool:
    return sequence.num_new_tokens > 0


def test_a_long_prompt_gets_half_of_every_batch_while_short_ones_keep_coming(
    model: DeepseekV32ForCausalLM, oracle: Oracle
) -> None:
    engine = Engine(model, max_batch_tokens=32, max_sequences=8)
    long = engine.add(oracle.random_ids(400), FEW)
    steps = 0
    while not is_prefilled(long):
        for number in range(2):
            engine.add(oracle.random_ids(20, seed=1000 + 2 * steps + number), FEW)
        engine.step()
        steps += 1
        assert steps <= 2 * 400 / 32 + 8, "the long prompt starves"


def test_a_short_prompt_does_not_wait_for_the_long_ones_before_it(
    model: DeepseekV32ForCausalLM, oracle: Oracle
) -> None:
    engine = Engine(model, max_batch_tokens=32, max_sequences=8)
    longs = [engine.add(oracle.random_ids(500, seed=seed), FEW) for seed in range(3)]
    engine.step()
    short = engine.add(oracle.random_ids(10, seed=9), FEW)
    engine.step()
    engine.step()
    assert is_prefilled(short)
    assert not any(map(is_prefilled, longs))


def test_admission_is_first_come_first_served(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model, max_batch_tokens=32, max_sequences=2)
    sequences = [engine.add(oracle.random_ids(30, seed=seed), FEW) for seed in range(6)]
    finished: list[EngineSequence] = []
    while engine.has_work:
        finished += [sequence for sequence, _ in engine.step() if sequence.is_finished and sequence not in finished]
        admitted = [s for s in sequences if s.num_cached_tokens is not None]
        assert admitted == sequences[: len(admitted)]
    assert set(finished) == set(sequences)


requests = st.lists(
    st.tuples(
        st.integers(0, 2),  # whose prefix it shares
        st.integers(1, 150),
        st.integers(1, 12),  # tokens to generate
        st.integers(0, 20),  # the step before which it comes
        st.one_of(st.none(), st.integers(0, 30)),  # the step before which it is cancelled
        st.booleans(),  # whether it was expected
    ),
    min_size=1,
    max_size=7,
)


@pytest.fixture(scope="module")
def drafting(model: DeepseekV32ForCausalLM) -> DeepseekV32ForCausalLM:
    return with_drafts(model, 0.99)


@pytest.mark.slow
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(requests, st.sampled_from([0, 2]), st.sampled_from([4, 30]), st.sampled_from([8, 40]))
def test_whatever_comes_goes_and_is_cancelled_each_gets_its_own_tokens(
    drafting: DeepseekV32ForCausalLM,
    oracle: Oracle,
    wanted: list[tuple[int, int, int, int, int | None, bool]],
    num_drafts: int,
    num_pages: int,
    batch_tokens: int,
) -> None:
    engine = Engine(
        drafting,
        num_drafts=num_drafts,
        kv_budget_bytes=num_pages * PAGE_BYTES,
        max_batch_tokens=batch_tokens,
        max_sequences=4,
    )
    running: dict[int, EngineSequence] = {}
    step = 0
    while step <= 30 or engine.has_work:
        for number, (family, length, num_new, comes, goes, is_expected) in enumerate(wanted):
            prompt = [*oracle.random_ids(length, seed=family), number]
            if comes == step and is_expected:
                engine.prefill_ahead(number, prompt)
            if comes == step:
                params = SamplingParams(temperature=0.7, seed=number, max_new_tokens=num_new)
                running[number] = engine.add(prompt, params)
            if goes == step and number in running:
                engine.cancel(running[number])
        if engine.has_work:
            engine.step()
        elif engine.has_work_ahead:
            engine.step_ahead()
        engine.check_integrity()
        step += 1
        assert step < 3000, "someone starves"
    for number, sequence in running.items():
        assert sequence.is_finished
        params = SamplingParams(temperature=0.7, seed=number, max_new_tokens=wanted[number][2])
        plain = Engine(drafting)
        alone = plain.add(sequence.token_ids[: sequence.num_prompt_tokens], params)
        while plain.has_work:
            plain.step()
        assert sequence.token_ids == alone.token_ids[: len(sequence.token_ids)]
        if wanted[number][4] is None:
            assert sequence.token_ids == alone.token_ids
