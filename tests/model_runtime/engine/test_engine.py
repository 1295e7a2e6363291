"""The engine's tokens are those of running the whole sequence again for every token, whatever the engine saves."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.model_runtime.engine.grammars import Spelling
from v32.model_runtime.engine import Engine
from v32.model_runtime.errors import ContextOverflowError, GeneratorError
from v32.model_runtime.generators.generator import Finished, SamplingParams, Token, TokenMatcher
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

if TYPE_CHECKING:
    from conftest import Oracle

GREEDY = SamplingParams(temperature=0, max_new_tokens=12)
SAMPLED = SamplingParams(seed=7, max_new_tokens=12, logprobs=True)
MORE_LENGTHS = (30, 39, 40, 63, 65)
PAGE_BYTES = 64 * 3 * (20 + 8 + 16) * 4
"""Of the test model."""


def run(engine: Engine) -> dict[Any, list[Token | Finished]]:
    """Step until nothing is left; what every sequence reported. The pages add up after each step."""
    events = defaultdict(list)
    while engine.has_work:
        for sequence, event in engine.step():
            events[sequence].append(event)
        engine.check_integrity()
    assert all(reported[-1] is sequence.last_event for sequence, reported in events.items())
    assert all(isinstance(event, Token) for reported in events.values() for event in reported[:-1])
    return events


def generate(engine: Engine, prompt_ids: Sequence[int], params: SamplingParams) -> list[int]:
    sequence = engine.add(prompt_ids, params)
    return ids_of(run(engine)[sequence])


def ids_of(events: Sequence[Token | Finished]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [1, 41, 64, 150, *(pytest.param(n, marks=pytest.mark.slow) for n in MORE_LENGTHS)])
def test_cached_generation_equals_recomputation(
    model: DeepseekV32ForCausalLM, oracle: Oracle, params: SamplingParams, length: int
) -> None:
    prompt = oracle.random_ids(length)
    assert generate(Engine(model), prompt, params) == oracle.generate(prompt, params)


@pytest.mark.parametrize("chunk", [7, 64, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 40, 100))])
def test_where_prefill_is_cut_changes_nothing(model: DeepseekV32ForCausalLM, oracle: Oracle, chunk: int) -> None:
    prompt = oracle.random_ids(170)
    engine = Engine(model, max_batch_tokens=chunk, max_sequences=1)
    assert generate(engine, prompt, GREEDY) == generate(Engine(model), prompt, GREEDY)


def test_hidden_states_equal_the_full_forward(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    prompt = oracle.random_ids(150)
    rows = []

    class Recording(DeepseekV32ForCausalLM):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.model, self.config, self.lm_head = model.model, model.config, model.lm_head

        def forward(self, *batch: Any) -> torch.Tensor:
            rows.append(super().forward(*batch))
            return rows[-1]

    engine = Engine(Recording(), max_batch_tokens=50, max_sequences=1)
    tokens = generate(engine, prompt, GREEDY)
    expected = oracle.hidden([*prompt, *tokens[:-1]])
    assert torch.allclose(torch.cat(rows), expected, rtol=2e-4, atol=2e-4)


def test_a_batch_of_n_equals_n_singles(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    prompts = [oracle.random_ids(length, seed=length) for length in (3, 20, 41, 64, 90, 130, 5, 200)]
    params = [SamplingParams(seed=seed, max_new_tokens=10 + seed) for seed in range(len(prompts))]
    singles = [generate(Engine(model), *pair) for pair in zip(prompts, params)]
    engine = Engine(model, max_batch_tokens=48, max_sequences=5)
    sequences = [engine.add(*pair) for pair in zip(prompts, params)]
    events = run(engine)
    assert [ids_of(events[sequence]) for sequence in sequences] == singles


def test_a_longer_prompt_reuses_everything_up_to_the_last_common_token(
    model: DeepseekV32ForCausalLM, oracle: Oracle
) -> None:
    engine = Engine(model)
    prompt = oracle.random_ids(100)
    answer = generate(engine, prompt, GREEDY)
    second = [*prompt, *answer, *oracle.random_ids(30, seed=1)]
    sequence = engine.add(second, GREEDY)
    events = run(engine)[sequence]
    assert events[-1].cached_tokens == len(prompt) + len(answer) - 1  # the last token of the answer was never run
    assert ids_of(events) == oracle.generate(second, GREEDY)
    branch = [*prompt[:77], *oracle.random_ids(30, seed=2)]
    sequence = engine.add(branch, GREEDY)
    events = run(engine)[sequence]
    assert events[-1].cached_tokens == 77
    assert ids_of(events) == oracle.generate(branch, GREEDY)


def test_parallel_samples_prefill_their_prompt_once(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model, max_batch_tokens=64, max_sequences=8)
    prompt = oracle.random_ids(150)
    sequences = [engine.add(prompt, SamplingParams(seed=seed, max_new_tokens=5)) for seed in range(6)]
    events = run(engine)
    assert [events[sequence][-1].cached_tokens for sequence in sequences[1:]] == [149] * 5
    assert len({tuple(ids_of(events[sequence])) for sequence in sequences}) == 6


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(
    model: DeepseekV32ForCausalLM, oracle: Oracle
) -> None:
    engine = Engine(model)
    prompt = oracle.random_ids(20)
    tokens = [generate(engine, prompt, SamplingParams(seed=seed, max_new_tokens=12)) for seed in (1, 2, 1)]
    assert tokens[0] == tokens[2] != tokens[1]
    unseeded = [generate(engine, prompt, SamplingParams(max_new_tokens=12)) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


@pytest.mark.slow
def test_preemption_under_memory_pressure_changes_nothing(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    prompts = [oracle.random_ids(100 + length, seed=length) for length in range(4)]
    params = SamplingParams(temperature=0, max_new_tokens=60)
    singles = [generate(Engine(model), prompt, params) for prompt in prompts]
    engine = Engine(model, kv_budget_bytes=7 * PAGE_BYTES, max_batch_tokens=32, max_sequences=4)
    sequences = [engine.add(prompt, params) for prompt in prompts]
    events = run(engine)
    assert engine.scheduler.num_preemptions > 0
    assert [ids_of(events[sequence]) for sequence in sequences] == singles


def test_a_lone_sequence_may_fill_the_whole_budget(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model, kv_budget_bytes=3 * PAGE_BYTES)
    assert engine.max_context == 192
    generate(engine, oracle.random_ids(150, seed=1), GREEDY)
    for seed in (1, 2):
        sequence = engine.add(oracle.random_ids(150, seed=seed), SamplingParams(temperature=0))
        events = run(engine)[sequence]
        assert len(ids_of(events)) == 42
        assert events[-1].reason == "length"


def test_long_prompts_do_not_hold_up_those_who_decode(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model, max_batch_tokens=16, max_sequences=4)
    short = engine.add(oracle.random_ids(4), SamplingParams(temperature=0, max_new_tokens=20))
    engine.step()
    long = engine.add(oracle.random_ids(600, seed=1), GREEDY)
    for _ in range(18):
        assert short in {sequence for sequence, _ in engine.step()}
    assert long.is_prefilling
    assert long.num_computed == 18 * 15


def test_cancelling_frees_pages_and_reports_it(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model, max_sequences=1)
    running, waiting = (engine.add(oracle.random_ids(100, seed=seed), GREEDY) for seed in (1, 2))
    engine.step()
    for sequence in (waiting, running):
        engine.cancel(sequence)
        engine.cancel(sequence)
    assert [event.reason for _, event in engine.step()] == ["cancelled", "cancelled"]
    assert not engine.has_work
    assert engine.pool.num_used == len(engine.prefix_cache)
    engine.reset_prefix_cache()
    assert engine.pool.num_used == 0


def test_stop_tokens_and_limits_end_a_generation(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    prompt = oracle.random_ids(20)
    tokens = oracle.generate(prompt, GREEDY)
    stop = tokens[5]
    engine = Engine(model)
    sequence = engine.add(prompt, SamplingParams(temperature=0, max_new_tokens=12, stop_token_ids=(stop,)))
    events = run(engine)[sequence]
    assert ids_of(events) == tokens[: tokens.index(stop) + 1]
    assert events[-1].reason == "stop"
    sequence = engine.add(prompt, SamplingParams(temperature=0, max_new_tokens=3))
    events = run(engine)[sequence]
    assert ids_of(events) == tokens[:3]
    assert events[-1].reason == "length"


def test_logprobs_are_the_models_own(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    prompt = oracle.random_ids(50)
    engine = Engine(model)
    params = SamplingParams(temperature=0.6, top_p=0.8, seed=3, max_new_tokens=8, logprobs=True)
    sequence = engine.add(prompt, params)
    tokens = [event for event in run(engine)[sequence] if isinstance(event, Token)]
    hidden = oracle.hidden([*prompt, *(token.id for token in tokens)])[len(prompt) - 1 : -1]
    expected = model.compute_logits(hidden).log_softmax(-1)[range(8), [token.id for token in tokens]]
    assert torch.allclose(torch.tensor([token.logprob for token in tokens]), expected, atol=1e-4)
    assert generate(engine, prompt, SamplingParams(max_new_tokens=1)) is not None
    sequence = engine.add(prompt, GREEDY)
    assert run(engine)[sequence][0].logprob is None


def test_grammar_masks_what_is_sampled_and_forced_tokens_are_run_as_one_chunk(
    model: DeepseekV32ForCausalLM, oracle: Oracle
) -> None:
    grammar = Spelling({9}, {10}, {20, 21, 22}, {33}, {31}, {64}, {100, 299}, set(range(300)))
    prompt = oracle.random_ids(60)
    engine = Engine(model)
    sequence = engine.add(prompt, SamplingParams(seed=1, max_new_tokens=10, logprobs=True), grammar)
    free = engine.add(prompt, GREEDY)
    steps = 0
    events = defaultdict(list)
    while engine.has_work:
        steps += 1
        for owner, event in engine.step():
            events[owner].append(event)
    tokens = [event for event in events[sequence] if isinstance(event, Token)]
    for token, allowed in zip(tokens, grammar.allowed):
        assert token.id in allowed
    assert [token.forced for token in tokens] == [True, True, False, True, True, True, False, False, False, False]
    assert tokens[3].logprob == 0.0
    assert steps <= 1 + 12
    assert ids_of(events[free]) == oracle.generate(prompt, GREEDY)
    # The token after the forced ones is what the model says after exactly these tokens.
    hidden = oracle.hidden([*prompt, *(token.id for token in tokens)])
    logits = model.compute_logits(hidden[len(prompt) + 5 : len(prompt) + 6])
    assert tokens[6].logprob == pytest.approx(float(logits.log_softmax(-1)[0, tokens[6].id]), abs=1e-4)


def test_forced_tokens_stop_at_a_stop_token_and_at_the_limit(model: DeepseekV32ForCausalLM) -> None:
    engine = Engine(model)
    grammar = Spelling({1, 2}, {3}, {4}, {5}, {6})
    sequence = engine.add([7, 8], SamplingParams(seed=1, stop_token_ids=(5,)), grammar)
    events = run(engine)[sequence]
    assert ids_of(events)[1:] == [3, 4, 5]
    assert events[-1].reason == "stop"
    sequence = engine.add([7, 8], SamplingParams(seed=1, max_new_tokens=3), grammar)
    events = run(engine)[sequence]
    assert ids_of(events)[1:] == [3, 4]
    assert events[-1].reason == "length"
    sequence = engine.add([7, 8], SamplingParams(stop_token_ids=(3,)), Spelling({2}, {3}))
    assert ids_of(run(engine)[sequence]) == [2, 3]


class Broken(Spelling):
    def start(self) -> TokenMatcher:
        return Broken(*self.allowed)

    def accept(self, token_id: int) -> bool:
        raise KeyError(token_id)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Spelling({1}, {2}, {3, 4}, set()), "the grammar allows no token after 3 tokens"),
        (Broken({1, 2}), "the grammar failed: KeyError"),
    ],
)
def test_a_failing_grammar_ends_its_own_sequence_only(
    model: DeepseekV32ForCausalLM, oracle: Oracle, grammar: Spelling, message: str
) -> None:
    engine = Engine(model)
    prompt = oracle.random_ids(30)
    failing = engine.add(prompt, SamplingParams(seed=1), grammar)
    other = engine.add(prompt, GREEDY)
    events = run(engine)
    assert isinstance(events[failing][-1], GeneratorError)
    assert message in str(events[failing][-1])
    assert ids_of(events[other]) == oracle.generate(prompt, GREEDY)


def test_logits_that_are_not_finite_are_an_error(model: DeepseekV32ForCausalLM) -> None:
    broken = copy.deepcopy(model)
    broken.lm_head.weight[17] = float("nan")
    engine = Engine(broken)
    sequence = engine.add([1, 2], GREEDY)
    assert "logits are not finite" in str(run(engine)[sequence][-1])


def test_bad_prompts_are_refused_by_name(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(model, max_context=50)
    with pytest.raises(ContextOverflowError, match="the prompt has 50 tokens, the context holds 50"):
        engine.add(oracle.random_ids(50), GREEDY)
    with pytest.raises(ValueError, match="the prompt is empty"):
        engine.add([], GREEDY)
    with pytest.raises(ValueError, match=r"holds token 300; the model knows 0\.\.299"):
        engine.add([1, 300], GREEDY)
    with pytest.raises(ValueError, match="holds no page"):
        Engine(model, kv_budget_bytes=1000)
    with pytest.raises(ValueError, match="max_sequences is 64"):
        Engine(model, max_batch_tokens=8)
    with pytest.raises(ValueError, match="max_context is 1; it must be 2 or more"):
        Engine(model, max_context=1)
    with pytest.raises(ValueError, match=r"max_context is 10,000,000; what the model was made for is [\d,]+:"):
        Engine(model, max_context=10_000_000)
    with pytest.raises(ValueError, match="max_context is 200; what the KV budget has room for is 64"):
        Engine(model, max_context=200, kv_budget_bytes=2 * Engine(model).pool.layout.page_bytes - 1)
    with pytest.raises(ValueError, match="temperature is nan; it must be 0"):
        SamplingParams(temperature=float("nan"))
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.add([1], GREEDY)


def test_a_half_precision_cache_stays_close(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    prompt = oracle.random_ids(150)
    params = SamplingParams(temperature=0, max_new_tokens=1, logprobs=True)
    logprobs = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = Engine(model, kv_dtype=dtype, max_batch_tokens=149, max_sequences=1)
        engine.add(prompt, params)
        logprobs.append(next(event.logprob for event in _tokens(engine)))
    assert logprobs[1] == pytest.approx(logprobs[0], abs=0.2)


def _tokens(engine: Engine) -> list[Token]:
    return [event for events in run(engine).values() for event in events if isinstance(event, Token)]
