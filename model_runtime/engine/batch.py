"""From the new tokens of many sequences to the flat tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
from torch import Tensor

from v32.model_runtime.cache.block_table import BlockTable
from v32.model_runtime.cache.pages import PagePool
from v32.model_runtime.engine.paged_attention import PagedAttention, Segment


class Part(NamedTuple):
    """Tokens at the positions start, start+1, … of one sequence; its table has room for them."""

    token_ids: Seq[int]
    table: BlockTable
    start: int

    @property
    def segment(self) -> Segment:
        return Segment(self.table, self.start, len(self.token_ids))


class Batch(NamedTuple):
    """The tokens of all parts in one row, those of decoding sequences first."""

    input_ids: Tensor  # int64 [N]
    positions: Tensor  # int64 [N]
    attention: PagedAttention
    rows: list[slice]  # where each part lies, in the order the parts were given


def build_batch(parts: Seq[Part], pool: PagePool, index_topk: int) -> Batch:
    """Lay out the parts; nothing is run and no table advances."""
    order = sorted(range(len(parts)), key=lambda index: not parts[index].segment.is_decode)  # stable
    input_ids: list[int] = []
    positions: list[int] = []
    rows = [slice(0)] * len(parts)
    for index in order:
        token_ids, _, start = parts[index]
        rows[index] = slice(len(input_ids), len(input_ids) + len(token_ids))
        input_ids += token_ids
        positions += range(start, start + len(token_ids))
    device = pool.layout.device
    return Batch(
        torch.tensor(input_ids, device=device),
        torch.tensor(positions, device=device),
        PagedAttention(pool, [parts[index].segment for index in order], index_topk),
        rows,
    )
