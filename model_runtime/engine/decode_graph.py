"""Decoding on a GPU: what a step launches is recorded once as a CUDA graph and replayed with other numbers in place.

    rows     the batch's tokens, filled up to a power of two; spare rows repeat the first and store nothing
    pages    of the longest sequence, up to a power of two: the width of the block table

A recording belongs to such a shape. Parts with up to `DECODE_TOKENS` new tokens enter, hidden states leave; between
them nothing depends on values, nothing is made from Python's numbers and nothing waits for the GPU. Without a recording
the same step runs operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from v32.kernels.index_score import paged_index_score
from v32.kernels.kv_append import kv_append
from v32.kernels.topk_select import topk_select
from v32.model_runtime.cache.pages import PAGE_SIZE, PagePool
from v32.model_runtime.engine.batch import Part, on_device
from v32.model_runtime.engine.paged_attention import attend_slots
from v32.model_runtime.model.attention import AttentionInputs
from v32.model_runtime.model.mla import MLA
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

MAX_ROWS = 128

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""From a step to what stands for it from then on; `CudaGraphs`, or nothing: `lambda step: step`."""


class CudaGraphs:
    """Records steps. They share the memory of what lives within one step, so one may run at a time."""

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()  # compiles kernels and makes what is made once: neither can be recorded
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            step()
        return graph.replay


class DecodeGraphs:
    """The decoding steps of a model over a pool, one for each shape that has come up."""

    def __init__(self, model: DeepseekV32ForCausalLM, pool: PagePool, capture: Capture) -> None:
        self._model, self._pool, self._capture = model, pool, capture
        self._steps: dict[tuple[int, int], tuple[_Step, Callable[[], None]]] = {}
        self._memory: Tensor | None = None

    def takes(self, parts: Seq[Part]) -> bool:
        """Whether all parts decode, and are not too many."""
        return all(p.segment.is_decode for p in parts) and sum(len(p.token_ids) for p in parts) <= MAX_ROWS

    def run(self, parts: Seq[Part]) -> list[Tensor]:
        """Hidden states of the parts' tokens, [n, D] for each, until the next call; keys and values go to the pages."""
        if self._memory is not self._pool.layers[0].records:  # the pool has grown: recordings point to what is gone
            self.clear()
            self._memory = self._pool.layers[0].records
        counts = [len(part.token_ids) for part in parts]
        shape = _power_of_two(sum(counts)), _power_of_two(max(len(part.table.pages) for part in parts))
        is_new = shape not in self._steps
        step = _Step(self._model, self._pool, *shape) if is_new else self._steps[shape][0]
        step.fill(parts)
        if is_new:
            self._steps[shape] = step, self._capture(step)
        self._steps[shape][1]()
        return list(step.hidden[: sum(counts)].split(counts))

    def clear(self) -> None:
        """Forget all recordings, which hold the addresses of weights and pages and the numerics of their time."""
        self._steps.clear()
        self._memory = None


class _Step:
    """The forward pass of one shape, over numbers and hidden states that stay in their place."""

    def __init__(self, model: DeepseekV32ForCausalLM, pool: PagePool, rows: int, pages: int) -> None:
        self._model, self._pool, self._pages = model, pool, pages
        device = pool.layout.device
        self._numbers = torch.zeros(rows * (4 + pages), dtype=torch.int64, device=device)
        self._ids, self._positions, self._slots, self._visible = self._numbers[: 4 * rows].view(4, rows)
        self._block_table = self._numbers[4 * rows :].view(rows, pages)
        self.hidden = torch.empty(rows, model.config.hidden_size, dtype=model.model.norm.weight.dtype, device=device)

    def fill(self, parts: Seq[Part]) -> None:
        """Put the parts' numbers in place: one copy, which waits for nobody."""
        rows = [row for part in parts for row in _rows(part)]
        spare = [rows[0]._replace(slot=-1)] * (len(self.hidden) - len(rows))
        ids, positions, slots, tables = zip(*rows, *spare, strict=True)
        numbers = [*ids, *positions, *slots, *(position + 1 for position in positions)]
        for pages in tables:
            numbers += pages + [0] * (self._pages - len(pages))
        self._numbers.copy_(on_device(numbers, np.int64, self._numbers.device))

    def __call__(self) -> None:
        topk = self._model.config.index_topk
        attention = _TableAttention(self._pool, self._slots, self._visible, self._block_table, topk)
        self.hidden.copy_(self._model(self._ids, self._positions, attention))


class _Row(NamedTuple):
    """One token; it is stored in `slot` and sees the positions up to its own."""

    token_id: int
    position: int
    slot: int
    pages: list[int]


def _rows(part: Part) -> Iterator[_Row]:
    pages = part.table.pages
    for position, token_id in enumerate(part.token_ids, part.start):
        yield _Row(token_id, position, pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE, pages)


class _TableAttention:
    """The `Attention` of rows that each see the first positions of a row of the block table."""

    def __init__(self, pool: PagePool, slots: Tensor, visible: Tensor, block_table: Tensor, index_topk: int) -> None:
        self._pool, self._slots, self._visible, self._block_table = pool, slots, visible, block_table
        self._index_topk = index_topk
        self._width = block_table.shape[1] * PAGE_SIZE
        self.needs_index_queries = self._width > index_topk

    def __call__(self, layer_idx: int, mla: MLA, inputs: AttentionInputs) -> Tensor:
        cache = self._pool.layers[layer_idx]
        kv_append(cache.records, self._slots, inputs.latent, inputs.k_pe)
        # Two halves, so that the operation that skips spare rows stores index keys as well.
        kv_append(cache.index_keys, self._slots, *inputs.index_k.tensor_split(2, -1))
        if not self.needs_index_queries:
            return attend_slots(cache, mla, inputs, self._visible_slots)
        assert inputs.index_q is not None
        assert inputs.index_weights is not None
        where = self._block_table, self._visible, PAGE_SIZE
        scores = paged_index_score(inputs.index_q, cache.index_keys, inputs.index_weights, *where)
        positions = topk_select(scores, self._index_topk, self._visible, ordered=False)
        return attend_slots(cache, mla, inputs, self._slots_of(positions))

    @cached_property
    def _visible_slots(self) -> Tensor:
        """Of every position, for all layers."""
        positions = torch.arange(self._width, device=self._visible.device)
        return self._slots_of(torch.where(positions < self._visible[:, None], positions, -1))

    def _slots_of(self, positions: Tensor) -> Tensor:
        """Slots of positions [rows, K], -1 where there is none."""
        known = positions.clamp_min(0)
        pages = self._block_table.gather(1, known // PAGE_SIZE)
        return (pages * PAGE_SIZE + known % PAGE_SIZE).masked_fill(positions < 0, -1)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
