"""The native step: the same hidden states as PyTorch, and bitwise the same however a sequence is cut and batched."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from tests.model_runtime.engine.conftest import generate_together as generate
from v32.kernels.native import library
from v32.model_runtime.checkpoint import load_checkpoint
from v32.model_runtime.checkpoint.source import embedded_checkpoint
from v32.model_runtime.engine import Engine
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

if TYPE_CHECKING:
    from conftest import Oracle

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=24)


@pytest.fixture(autouse=True)
def _library() -> None:
    if library() is None:
        pytest.skip("no native kernels on this machine")


@pytest.fixture(scope="module")
def in_torch(model: DeepseekV32ForCausalLM) -> DeepseekV32ForCausalLM:
    other = copy.deepcopy(model)
    other.model.uses_native = False
    return other


def engine_of(model: DeepseekV32ForCausalLM, max_batch_tokens: int = 512) -> Engine:
    return Engine(model, kv_budget_bytes=64 << 20, max_batch_tokens=max_batch_tokens, max_sequences=8)


def test_greedy_tokens_are_those_of_pytorch(
    model: DeepseekV32ForCausalLM, in_torch: DeepseekV32ForCausalLM, oracle: Oracle
) -> None:
    assert model.model.native is not None
    prompts = [oracle.random_ids(length, seed=length) for length in (1, 17, 39, 40, 41, 130, 300)]
    assert generate(engine_of(model), prompts, GREEDY) == generate(engine_of(in_torch), prompts, GREEDY)


def test_tokens_do_not_depend_on_batches_and_chunks(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    prompts = [oracle.random_ids(length, seed=length) for length in (5, 64, 90, 222)]
    params = dataclasses.replace(GREEDY, temperature=1.0, top_p=0.95, seed=3)
    alone = [generate(engine_of(model), [prompt], params)[0] for prompt in prompts]
    assert generate(engine_of(model), prompts, params) == alone
    assert generate(engine_of(model, max_batch_tokens=13), prompts, params) == alone


def hidden_states(model: DeepseekV32ForCausalLM, prompt: list[int], chunk: int) -> Iterator[torch.Tensor]:
    from v32.model_runtime.cache import BlockTable
    from v32.model_runtime.engine.paged_attention import PagedAttention, Segment

    engine = engine_of(model)
    table = BlockTable(engine.pool)
    for start in range(0, len(prompt), chunk):
        ids = prompt[start : start + chunk]
        table.reserve(len(ids))
        attention = PagedAttention(engine.pool, [Segment(table, start, len(ids))], model.config.index_topk)
        with torch.inference_mode():
            yield model(torch.tensor(ids), torch.arange(start, start + len(ids)), attention)
        table.advance(len(ids))


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 150])
def test_hidden_states_equal_the_full_forward_and_are_bitwise_those_of_any_chunks(
    model: DeepseekV32ForCausalLM, oracle: Oracle, chunk: int
) -> None:
    prompt = oracle.random_ids(170)
    rows = torch.cat(list(hidden_states(model, prompt, chunk)))
    assert torch.allclose(rows, oracle.hidden(prompt), rtol=2e-4, atol=2e-4)
    assert torch.equal(rows, torch.cat(list(hidden_states(model, prompt, 170))))


def test_the_number_of_threads_changes_nothing(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    prompt = oracle.random_ids(150)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat(list(hidden_states(model, prompt, 50)))
        torch.set_num_threads(3)
        assert torch.equal(torch.cat(list(hidden_states(model, prompt, 50))), alone)
    finally:
        torch.set_num_threads(threads)


def test_weights_that_are_replaced_are_used(model: DeepseekV32ForCausalLM, oracle: Oracle) -> None:
    other = copy.deepcopy(model)
    prompt = oracle.random_ids(20)
    before = torch.cat(list(hidden_states(other, prompt, 20)))
    doubled = {name: tensor * 2 for name, tensor in other.state_dict().items()}
    other.load_state_dict(doubled, assign=True)
    assert not torch.allclose(torch.cat(list(hidden_states(other, prompt, 20))), before)


def test_no_change_of_a_weight_or_a_module_is_missed(model: DeepseekV32ForCausalLM) -> None:
    other = copy.deepcopy(model)
    before = other.model.native
    assert before is not None
    assert other.model.native is before
    for name, parameter in list(other.model.named_parameters()):
        kept = parameter.data
        parameter.data = kept.clone()
        changed = other.model.native
        assert changed is not before, name
        before = changed
    other.model.layers[1].mlp = copy.deepcopy(other.model.layers[1].mlp)
    assert other.model.native is not before


def test_the_embedded_checkpoint_says_the_same() -> None:
    native = load_checkpoint(embedded_checkpoint())
    in_torch = copy.deepcopy(native)
    in_torch.model.uses_native = False
    assert native.model.native is not None
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(300, 1000, (n,), generator=generator).tolist() for n in (3, 100, 250)]
    params = dataclasses.replace(GREEDY, max_new_tokens=40)
    assert generate(engine_of(native), prompts, params) == generate(engine_of(in_torch), prompts, params)
