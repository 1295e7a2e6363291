"""From the new tokens of many sequences to the flat tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike
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
    segments = [part.segment for part in parts]
    order = sorted(range(len(parts)), key=lambda index: not segments[index].is_decode)  # stable
    input_ids: list[int] = []
    positions: list[int] = []
    rows = [slice(0)] * len(parts)
    for index in order:
        rows[index] = slice(len(input_ids), len(input_ids) + segments[index].num_tokens)
        input_ids += parts[index].token_ids
        positions += range(segments[index].start, segments[index].end)
    flat = on_device([input_ids, positions], np.int64, torch.device(pool.layout.device))
    return Batch(flat[0], flat[1], PagedAttention(pool, [segments[index] for index in order], index_topk), rows)


def on_device(values: Seq[float] | Seq[Seq[float]], dtype: DTypeLike, device: torch.device) -> Tensor:
    """Numbers as a tensor. To a GPU they go in the order of its stream, while the host goes on."""
    numbers = torch.from_numpy(np.array(values, dtype))
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)
