"""Attention and index scores move what has to be moved: 1.15 times the necessary bytes at most, counted by sector.

Counted in the interpreter, with the published model's widths: each 32-byte sector once, as a cache does that holds the
keys of the queries that run at the same time. What every program loads from that cache is more, and is bounded as well.
"""

from __future__ import annotations

import pytest
import torch

from v32.kernels.kv_append import record_bytes

MOST = 1.15
LATENT, ROPE = 512, 64
INDEX_HEADS, INDEX_WIDTH, PAGE = 64, 128, 64


@pytest.fixture(autouse=True)
def _interpreter(device: str) -> None:
    if device != "cpu":
        pytest.skip("loads are counted in the interpreter")


@pytest.mark.slow
@pytest.mark.parametrize("is_record", [True, False], ids=["fp8", "bfloat16"])
@pytest.mark.parametrize(("tokens", "heads"), [(1, 128), (17, 16)])
def test_sparse_mla_reads_every_selected_record_once(
    is_record: bool, tokens: int, heads: int, rng: torch.Generator
) -> None:
    from v32.kernels.sparse_mla import triton as kernel
    from v32.kernels.triton_support.traffic import counted

    selected = 512 if tokens == 1 else 64
    slots = 2 * tokens * selected
    q, q_pe = torch.zeros(tokens, heads, LATENT).bfloat16(), torch.zeros(tokens, heads, ROPE).bfloat16()
    # Neighbours of a selected record are not selected: sectors that two of them share count for one.
    indices = torch.randperm(slots // 2, generator=rng).view(tokens, selected) * 2
    with counted() as traffic:
        if is_record:
            cache = torch.zeros(slots, record_bytes(LATENT, ROPE), dtype=torch.uint8)
            y = kernel.sparse_mla_fp8(q, q_pe, cache, indices, 0.1)
        else:
            cache = torch.zeros(slots, LATENT + ROPE).bfloat16()
            y = kernel.sparse_mla(q, q_pe, cache[:, :LATENT], cache[:, LATENT:], indices, 0.1)
    inputs = (q, q_pe, cache, indices)
    necessary = tokens * selected * cache[0].nbytes + q.nbytes + q_pe.nbytes + indices.nbytes + y.nbytes
    moved = sum(traffic.read(tensor) for tensor in inputs) + traffic.written(y)
    assert necessary <= moved <= MOST * necessary
    # The partial results of split keys: written once, read once, nothing where keys are not split.
    splits = kernel.num_splits(tokens, selected)
    partial = splits * tokens * heads * (LATENT + 1) * 4 if splits > 1 else 0
    assert partial <= traffic.read_elsewhere(*inputs) <= partial + 64
    # Blocks of 16 heads read the same records, FP8 ones for scores and for values.
    assert traffic.loaded <= (2 if is_record else 1) * heads // 16 * MOST * tokens * selected * cache[0].nbytes + (
        splits * (selected // splits // 32 if is_record else 1) * MOST * (q.nbytes + q_pe.nbytes) + 2 * partial
    )


def test_index_score_reads_a_chunk_s_queries_and_keys_once(rng: torch.Generator) -> None:
    from v32.kernels.index_score import triton as kernel
    from v32.kernels.triton_support.traffic import counted

    q = torch.zeros(33, INDEX_HEADS, INDEX_WIDTH).to(torch.float8_e4m3fn)
    k, scale = torch.zeros(200, INDEX_WIDTH).to(torch.float8_e4m3fn), torch.ones(200)
    weights = torch.zeros(33, INDEX_HEADS)
    with counted() as traffic:
        scores = kernel.index_score(q, k, weights, scale)
    inputs = (q, k, weights, scale)
    necessary = sum(tensor.nbytes for tensor in (*inputs, scores))
    moved = sum(traffic.read(tensor) for tensor in inputs) + traffic.written(scores)
    assert necessary <= moved <= MOST * necessary
    assert traffic.read_elsewhere(*inputs) == 0


def test_paged_index_score_reads_the_keys_that_are_visible_and_no_others(rng: torch.Generator) -> None:
    from v32.kernels.index_score import triton as kernel
    from v32.kernels.triton_support.traffic import counted

    visible = torch.tensor([500, 1, 130])
    table = torch.randperm(24, generator=rng).view(3, 8)
    keys, scale = torch.zeros(24 * PAGE, INDEX_WIDTH).to(torch.float8_e4m3fn), torch.ones(24 * PAGE)
    q, weights = torch.zeros(3, INDEX_HEADS, INDEX_WIDTH).to(torch.float8_e4m3fn), torch.zeros(3, INDEX_HEADS)
    with counted() as traffic:
        scores = kernel.paged_index_score(q, keys, weights, table, visible, PAGE, scale)
    inputs = (q, keys, weights, scale, table, visible)
    positions = int(visible.sum())
    necessary = positions * (INDEX_WIDTH + 4 + 4) + q.nbytes + weights.nbytes
    moved = sum(traffic.read(tensor) for tensor in inputs) + traffic.written(scores)
    assert necessary <= moved <= MOST * necessary
    assert traffic.read(keys) == positions * INDEX_WIDTH
