"""Drafts change how fast tokens come and never which: the oracle is the engine without them."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch

from tests.conftest import slow
from tests.model_runtime.engine.grammars import Spelling
from v32.model_runtime.engine import Engine
from v32.model_runtime.engine import Sequence as EngineSequence
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.model.attention import FullAttention
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

if TYPE_CHECKING:
    from conftest import Oracle

from tests.model_runtime.engine.conftest import CONFIG

PAGE_BYTES = 64 * 4 * (20 + 8 + 16) * 4
"""Of the test model with its MTP layer."""
GREEDY = SamplingParams(temperature=0, max_new_tokens=20)
SAMPLED = SamplingParams(temperature=0.7, top_p=0.9, seed=7, max_new_tokens=20, logprobs=True)


def with_drafts(model: DeepseekV32ForCausalLM, agreement: float) -> DeepseekV32ForCausalLM:
    """A model with an MTP layer. With agreement 1 the next token depends on the last one alone, and the drafts are the
    model's own; with 0 layers and drafts are random; between them the drafts are right at times."""
    generator = torch.Generator().manual_seed(3)
    drafting = DeepseekV32ForCausalLM(dataclasses.replace(CONFIG, num_nextn_predict_layers=1), with_mtp=True)
    with torch.no_grad():
        for parameter in drafting.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.6 * parameter.shape[-1] ** -0.5, generator=generator)
        drafting.load_state_dict(model.state_dict(), strict=False)
        (layer,) = drafting.mtp_layers
        size = CONFIG.hidden_size
        if agreement:
            layer.embed_tokens.weight.copy_(drafting.model.embed_tokens.weight)
            layer.shared_head.head.weight.copy_(drafting.lm_head.weight)
            layer.eh_proj.weight.copy_(torch.cat((torch.eye(size), torch.zeros(size, size)), 1))
            for name, parameter in drafting.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.mul_(1 - agreement)
    return drafting.requires_grad_(False)


@pytest.fixture(scope="session", params=[*slow(0.0), 0.99, *slow(1.0)], ids=["random", "partly", "agreeing"])
def drafting(model: DeepseekV32ForCausalLM, request: pytest.FixtureRequest) -> DeepseekV32ForCausalLM:
    return with_drafts(model, request.param)


@pytest.fixture(scope="session")
def partly(model: DeepseekV32ForCausalLM) -> DeepseekV32ForCausalLM:
    return with_drafts(model, 0.99)


def finish(engine: Engine) -> int:
    """Step until nothing is left; how many steps it took."""
    steps = 0
    while engine.has_work:
        engine.step()
        engine.check_integrity()
        steps += 1
    return steps


def generate(engine: Engine, prompt: Sequence[int], params: SamplingParams) -> EngineSequence:
    sequence = engine.add(prompt, params)
    finish(engine)
    return sequence


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("num_drafts", [1, 3])
def test_tokens_equal_those_without_drafts(
    drafting: DeepseekV32ForCausalLM, oracle: Oracle, params: SamplingParams, num_drafts: int
) -> None:
    plain, engine = Engine(drafting), Engine(drafting, num_drafts=num_drafts)
    for length in (1, 38, 150):
        prompt = oracle.random_ids(length)
        assert generate(engine, prompt, params).token_ids == generate(plain, prompt, params).token_ids


def test_right_drafts_save_steps_and_are_counted(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(with_drafts(model, 1.0), num_drafts=3)
    sequence = engine.add(oracle.random_ids(20), SamplingParams(seed=1, max_new_tokens=41))
    assert finish(engine) == 1 + 10  # one token of the prompt's step, four of each other
    assert sequence.last_event.accepted_tokens == sequence.last_event.drafted_tokens == 30
    sequence = generate(Engine(with_drafts(model, 0.99), num_drafts=1), oracle.random_ids(20), GREEDY)
    assert 0 < sequence.last_event.accepted_tokens < sequence.last_event.drafted_tokens


def test_logprobs_are_those_without_drafts(partly: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    logprobs = []
    for engine in (Engine(partly), Engine(partly, num_drafts=2)):
        engine.add(oracle.random_ids(30), SAMPLED)
        events = []
        while engine.has_work:
            events += [event for _, event in engine.step()]
        logprobs.append([event.logprob for event in events[:-1]])
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)


@pytest.mark.slow
def test_a_batch_of_n_equals_n_singles_even_when_memory_is_short(
    partly: DeepseekV32ForCausalLM, oracle: Oracle
) -> None:
    prompts = [oracle.random_ids(length, seed=length) for length in (3, 41, 64, 90, 125)]
    params = [SamplingParams(seed=seed, max_new_tokens=25 + 5 * seed) for seed in range(len(prompts))]
    singles = [generate(Engine(partly), *pair).token_ids for pair in zip(prompts, params)]
    engine = Engine(partly, num_drafts=2, max_batch_tokens=24, max_sequences=4, kv_budget_bytes=6 * PAGE_BYTES)
    sequences = [engine.add(*pair) for pair in zip(prompts, params)]
    finish(engine)
    assert engine.scheduler.num_preemptions > 0
    assert [sequence.token_ids for sequence in sequences] == singles
    assert sum(sequence.num_accepted for sequence in sequences) > 0


@pytest.mark.slow
def test_a_lone_sequence_may_fill_the_whole_budget(partly: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    engine = Engine(partly, num_drafts=3, kv_budget_bytes=3 * PAGE_BYTES)
    for seed in (1, 2):
        sequence = generate(engine, oracle.random_ids(150, seed=seed), SamplingParams(seed=1))
        assert len(sequence.token_ids) == 192


@pytest.mark.parametrize("num_drafts", [1, *slow(3)])
def test_under_a_grammar_the_matcher_is_where_the_tokens_are(
    partly: DeepseekV32ForCausalLM, oracle: Oracle, num_drafts: int
) -> None:
    wide = set(range(0, 300, 2))
    allowed = [wide, wide, {9}, wide, {3, 5}, {7}, {8}, *[wide] * 8, {1, 2, 3}, *[wide] * 20]
    taken = []
    for seed in range(3):
        params = SamplingParams(seed=seed, temperature=0.7, max_new_tokens=36, stop_token_ids=(44,))
        plain, engine = Engine(partly), Engine(partly, num_drafts=num_drafts)
        expected, sequence = (
            each.add(oracle.random_ids(30, seed=seed), params, Spelling(*allowed)) for each in (plain, engine)
        )
        finish(plain)
        while engine.has_work:
            engine.step()
            assert sequence.matcher is not None
            assert sequence.matcher.position == sequence.num_new_tokens  # type: ignore[attr-defined]
        assert sequence.token_ids == expected.token_ids
        taken.append(sequence.num_accepted)
    assert sum(taken) > 0


@torch.inference_mode()
@pytest.mark.parametrize("budget", [16, *slow(512)])
@pytest.mark.parametrize("is_native", [True, False], ids=["native", "pytorch"])
def test_drafts_are_those_of_the_whole_sequence_run_at_once(
    partly: DeepseekV32ForCausalLM, oracle: Oracle, budget: int, is_native: bool
) -> None:
    partly = copy.deepcopy(partly)
    partly.model.uses_native = is_native
    engine = Engine(partly, num_drafts=1, max_batch_tokens=budget, max_sequences=2)
    sequence = engine.add(oracle.random_ids(120), SamplingParams(temperature=0, max_new_tokens=15))
    engine.add(oracle.random_ids(90, seed=1), GREEDY)
    checked = 0
    while engine.has_work and not sequence.is_finished:
        engine.step()
        if sequence.drafts:
            ids = torch.tensor(sequence.token_ids)
            positions, attention = torch.arange(len(ids) - 1), FullAttention([len(ids) - 1], CONFIG.index_topk)
            hidden = partly(ids[:-1], positions, attention)
            cos, sin = partly.model.rotary(positions)
            _, logits = partly.mtp_layers[0].draft(hidden, ids[1:], positions, cos, sin, attention)
            assert sequence.drafts == [int(logits[-1].argmax())]
            checked += 1
    assert checked > 5


@pytest.mark.slow
def test_the_second_token_has_the_models_distribution(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    partly = with_drafts(model, 0.999)
    prompt, num_samples = oracle.random_ids(10), 800
    with torch.inference_mode():
        first = partly.compute_logits(oracle_hidden(partly, prompt)[-1:]).softmax(-1)[0]
        rows = [oracle_hidden(partly, [*prompt, token])[-1] for token in range(CONFIG.vocab_size)]
        exact = first @ partly.compute_logits(torch.stack(rows)).softmax(-1)
    engine = Engine(partly, num_drafts=1)
    # The second token is what the draft was checked against, once a third is asked for.
    sequences = [engine.add(prompt, SamplingParams(top_p=1.0, seed=s, max_new_tokens=3)) for s in range(num_samples)]
    while engine.has_work:
        engine.step()
    assert sum(sequence.num_accepted for sequence in sequences) > num_samples / 10
    counts = Counter(sequence.token_ids[len(prompt) + 1] for sequence in sequences)
    common = exact.argsort(descending=True)[:20].tolist()
    observed = [counts[token] for token in common] + [num_samples - sum(counts[token] for token in common)]
    expected = [float(exact[token]) * num_samples for token in common]
    expected.append(num_samples - sum(expected))
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert chi_square < 45.3  # 20 degrees of freedom, p = 0.001


def oracle_hidden(model: DeepseekV32ForCausalLM, token_ids: Sequence[int]) -> torch.Tensor:
    attention = FullAttention([len(token_ids)], CONFIG.index_topk)
    return model(torch.tensor(token_ids), torch.arange(len(token_ids)), attention)


def test_without_the_layer_there_are_no_drafts(model: DeepseekV32ForCausalLM, partly: DeepseekV32ForCausalLM) -> None:
    with pytest.raises(ValueError, match="load it with mtp=True"):
        Engine(model, num_drafts=1)
    with pytest.raises(ValueError, match="9 drafts a step; choose 1 to 7"):
        Engine(partly, num_drafts=9)
