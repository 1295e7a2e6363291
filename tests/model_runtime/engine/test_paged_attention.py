"""PagedAttention sees what FullAttention sees: any mix of chunks over scattered pages, in every form it may choose."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v32.model_runtime.cache import BlockTable, KVLayout, PagePool
from v32.model_runtime.engine.paged_attention import DECODE_TOKENS, PagedAttention, Segment
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

if TYPE_CHECKING:
    from conftest import Oracle


def run_in_pieces(
    model: DeepseekV32ForCausalLM, prompts: list[list[int]], cuts: list[list[int]], dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Hidden states of each prompt, run in pieces of the given lengths (repeated) that share their batches."""
    layout = KVLayout.of_model(model.config, dtype)
    pool = PagePool(layout, 200 * layout.page_bytes)
    for layer in pool.layers:  # what was never written must never be seen
        layer.records.fill_(float("nan"))
        layer.index_keys.fill_(float("nan"))
    # The native step has tests of its own.
    in_torch = copy.deepcopy(model)
    in_torch.model.uses_native = False
    tables = [BlockTable(pool) for _ in prompts]
    hidden: list[list[torch.Tensor]] = [[] for _ in prompts]
    turn = 0
    while any(table.length < len(prompt) for table, prompt in zip(tables, prompts)):
        segments = []
        for number, (table, prompt) in enumerate(zip(tables, prompts)):
            num_tokens = min(cuts[number][turn % len(cuts[number])], len(prompt) - table.length)
            if num_tokens:
                table.reserve(num_tokens)
                segments.append((number, Segment(table, table.length, num_tokens)))
        segments.sort(key=lambda pair: not pair[1].is_decode)
        ids = [i for number, s in segments for i in prompts[number][s.start : s.end]]
        positions = [p for _, s in segments for p in range(s.start, s.end)]
        attention = PagedAttention(pool, [s for _, s in segments], model.config.index_topk)
        with torch.inference_mode():
            rows = in_torch(torch.tensor(ids), torch.tensor(positions), attention)
        for (number, segment), part in zip(segments, rows.split([s.num_tokens for _, s in segments])):
            hidden[number].append(part)
            tables[number].advance(segment.num_tokens)
        turn += 1
    return [torch.cat(parts) for parts in hidden]


@pytest.mark.slow
@settings(max_examples=6, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(1, 180), st.lists(st.sampled_from([1, 3, 8, 9, 30, 70, 180]), min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_any_mix_of_chunks_equals_the_full_forward(
    model: DeepseekV32ForCausalLM, oracle: Oracle, requests: list[tuple[int, list[int]]]
) -> None:
    prompts = [oracle.random_ids(length, seed=length) for length, _ in requests]
    for prompt, rows in zip(prompts, run_in_pieces(model, prompts, [cuts for _, cuts in requests])):
        assert torch.allclose(rows, oracle.hidden(prompt), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    "chunk",
    [DECODE_TOKENS, DECODE_TOKENS + 1, 41, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 20, 39, 40, 200))],
)
def test_every_form_of_attention_equals_the_full_forward(
    model: DeepseekV32ForCausalLM, oracle: Oracle, chunk: int
) -> None:
    prompts = [oracle.random_ids(length, seed=length) for length in (200, 150)]
    for prompt, rows in zip(prompts, run_in_pieces(model, prompts, [[chunk]] * 2)):
        assert torch.allclose(rows, oracle.hidden(prompt), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("chunk", [5, 50])
def test_a_half_precision_cache_stays_close_where_everything_is_visible(
    model: DeepseekV32ForCausalLM, oracle: Oracle, chunk: int
) -> None:
    prompt = oracle.random_ids(model.config.index_topk)
    (rows,) = run_in_pieces(model, [prompt], [[chunk]], torch.bfloat16)
    expected = oracle.hidden(prompt)
    assert (rows - expected).norm() < 0.03 * expected.norm()
