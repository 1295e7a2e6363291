"""From chunks to the flat tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
from torch import Tensor

from v32.model_runtime.cache.pages import PagePool
from v32.model_runtime.engine.paged_attention import PagedAttention, Segment
from v32.model_runtime.engine.scheduler import Chunk
from v32.model_runtime.engine.sequence import Sequence


class Batch(NamedTuple):
    """The tokens of all chunks in one row, those of decoding sequences first."""

    chunks: list[Chunk]
    input_ids: Tensor  # int64 [N]
    positions: Tensor  # int64 [N]
    attention: PagedAttention
    sampled: list[Sequence]  # the sequences whose last pending token is in the batch
    sampled_rows: Tensor  # int64 [M], the rows of those tokens


def build_batch(chunks: Seq[Chunk], pool: PagePool, index_topk: int) -> Batch:
    """Lay out the chunks; nothing is run and no table advances."""
    segments = [(chunk, _segment(chunk)) for chunk in chunks]
    segments.sort(key=lambda pair: not pair[1].is_decode)  # stable
    input_ids: list[int] = []
    positions: list[int] = []
    sampled, sampled_rows = [], []
    for chunk, segment in segments:
        input_ids += chunk.sequence.token_ids[segment.start : segment.end]
        positions += range(segment.start, segment.end)
        if chunk.is_last:
            sampled.append(chunk.sequence)
            sampled_rows.append(len(input_ids) - 1)
    device = pool.layout.device
    return Batch(
        [chunk for chunk, _ in segments],
        torch.tensor(input_ids, device=device),
        torch.tensor(positions, device=device),
        PagedAttention(pool, [segment for _, segment in segments], index_topk),
        sampled,
        torch.tensor(sampled_rows, dtype=torch.int64, device=device),
    )


def _segment(chunk: Chunk) -> Segment:
    assert chunk.sequence.table is not None
    return Segment(chunk.sequence.table, chunk.sequence.num_computed, chunk.num_tokens)
