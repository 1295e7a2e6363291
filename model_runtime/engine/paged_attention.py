"""Attention over the paged cache, for a batch that mixes decoding sequences with chunks of prompts.

Every layer first stores its new latents, rotary keys and index keys, then attends:

    decode     few new tokens a sequence: the absorbed form over gathered rows, all sequences in one call
    prefill    many new tokens of one sequence: dense while all is visible to all, else what the indexer selects;
               in the expanded or in the absorbed form, whichever costs less

No matrix is ever larger than (new tokens) x (visible tokens); decoding has none of that size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from v32.kernels.decoder_step import CacheTensors
from v32.kernels.dense_mla import dense_mla, expanded_mla
from v32.kernels.index_score import index_score
from v32.kernels.kv_append import kv_append, read_fp8_records
from v32.kernels.sparse_mla import sparse_mla, sparse_mla_fp8
from v32.kernels.topk_select import topk_select
from v32.model_runtime.cache.block_table import BlockTable
from v32.model_runtime.cache.pages import FP8_RECORDS, LayerCache, PagePool
from v32.model_runtime.model.attention import AttentionInputs
from v32.model_runtime.model.mla import MLA

if TYPE_CHECKING:
    from v32.model_runtime.model.native import NativeDecoder
    from v32.model_runtime.model.transformer import DeepseekV32Model

DECODE_TOKENS = 8
"""A sequence with up to so many new tokens decodes: its rows are gathered one by one."""
GATHER_COST = 4.0
"""What a multiplication with gathered keys costs, in multiplications of a dense product; measured 3-7 on AVX2."""
BLOCK_ELEMENTS = 1 << 24
"""Scores and gathered keys are made for so many queries at a time that they have about this many elements."""


class Segment(NamedTuple):
    """New tokens of one sequence, at the positions start..start+num_tokens-1; the table has room for them."""

    table: BlockTable
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def is_decode(self) -> bool:
        return self.num_tokens <= DECODE_TOKENS


class PagedAttention:
    """The `Attention` of one batch; the batch's rows are the segments' tokens, decoding segments first."""

    def __init__(self, pool: PagePool, segments: Sequence[Segment], index_topk: int) -> None:
        self.pool = pool
        self.segments = list(segments)
        self.index_topk = index_topk
        self.end = max(segment.end for segment in segments)
        self.needs_index_queries = self.end > index_topk

    def run(self, model: DeepseekV32Model, input_ids: Tensor, positions: Tensor) -> Tensor | None:
        """The whole batch in one native call, where the model and the cache allow it."""
        native = self._native(model)
        if native is None:
            return None
        caches = [CacheTensors(layer.records, layer.index_keys) for layer in self.pool.layers]
        return native.forward(model, input_ids, positions, self._table_addresses(), self.end, caches)

    def run_draft(self, model: DeepseekV32Model, rows: Tensor, positions: Tensor) -> Tensor | None:
        """As `run` for the first MTP layer; rows are its joined inputs."""
        native = self._native(model)
        if native is None or not native.has_draft:
            return None
        layer = self.pool.layers[model.config.num_hidden_layers]
        cache = CacheTensors(layer.records, layer.index_keys)
        return native.forward_draft(model, rows, positions, self._table_addresses(), self.end, cache)

    def _native(self, model: DeepseekV32Model) -> NativeDecoder | None:
        if torch.is_grad_enabled() or self.pool.layout.dtype != torch.float32:
            return None
        return model.find_native(goes_on=all(segment.start > 0 for segment in self.segments))

    def _table_addresses(self) -> list[int]:
        """Of each row's slots."""
        return [address for s in self.segments for address in [s.table.slots(0, 1).data_ptr()] * s.num_tokens]

    @cached_property
    def _slot_mapping(self) -> Tensor:
        return torch.cat([s.table.slots(s.start, s.end) for s in self.segments])

    @cached_property
    def _parts(self) -> list[_Decode | _Prefill]:
        decoding = [segment for segment in self.segments if segment.is_decode]
        assert decoding == self.segments[: len(decoding)], "decoding segments stand first"
        parts: list[_Decode | _Prefill] = [_Decode(decoding, self.index_topk)] if decoding else []
        row = sum(segment.num_tokens for segment in decoding)
        for segment in self.segments[len(decoding) :]:
            for span in _split_at(segment, self.index_topk):
                parts.append(_Prefill(span, row, self.index_topk))
                row += span.num_tokens
        return parts

    def __call__(self, layer_idx: int, mla: MLA, inputs: AttentionInputs) -> Tensor:
        cache = self.pool.layers[layer_idx]
        kv_append(cache.records, self._slot_mapping, inputs.latent, inputs.k_pe)
        cache.index_keys.index_copy_(0, self._slot_mapping, inputs.index_k.to(cache.index_keys.dtype))
        if len(self._parts) == 1:
            return self._parts[0].attend(cache, mla, inputs)
        return torch.cat([part.attend(cache, mla, _take(inputs, part.rows)) for part in self._parts])


class _Decode:
    """Rows of all decoding sequences; each row gathers its own selected slots."""

    def __init__(self, segments: Sequence[Segment], index_topk: int) -> None:
        self.index_topk = index_topk
        rows = [_Row(s.table, position + 1) for s in segments for position in range(s.start, s.end)]
        self.rows = slice(0, len(rows))
        slots = segments[0].table.slots(0, 0)
        self._slots = slots.new_full((len(rows), min(max(row.visible for row in rows), index_topk)), -1)
        for index, row in enumerate(rows):
            if row.visible <= index_topk:  # it sees everything
                self._slots[index, : row.visible] = row.table.slots(0, row.visible)
        self._scored = [_Scored(rows, group) for group in _group_by_length(rows, index_topk)]

    def attend(self, cache: LayerCache, mla: MLA, inputs: AttentionInputs) -> Tensor:
        for scored in self._scored:
            self._slots[scored.rows] = scored.select(cache, inputs, self.index_topk)
        return attend_slots(cache, mla, inputs, self._slots)


class _Row(NamedTuple):
    """One decoding token; it sees the first `visible` positions of its table."""

    table: BlockTable
    visible: int


class _Scored:
    """Rows of similar length that see more than index_topk positions, scored in one call."""

    def __init__(self, rows: Sequence[_Row], group: list[int]) -> None:
        chosen = [rows[index] for index in group]
        longest = max(chosen, key=lambda row: row.visible)
        self.rows = torch.tensor(group, device=longest.table.slots(0, 0).device)
        self._visible = self.rows.new_tensor([row.visible for row in chosen])
        self._is_shared = all(row.table is longest.table for row in chosen)
        if self._is_shared:
            self._keys = longest.table.rows(longest.visible)
            self._slots = longest.table.slots(0, longest.visible)[None].expand(len(group), -1)
        else:
            self._slots = self.rows.new_zeros(len(group), longest.visible)
            for index, row in enumerate(chosen):
                self._slots[index, : row.visible] = row.table.slots(0, row.visible)
            self._keys = self._slots

    def select(self, cache: LayerCache, inputs: AttentionInputs, index_topk: int) -> Tensor:
        """Slots of the positions that the indexer selects, [rows, index_topk]."""
        assert inputs.index_q is not None
        assert inputs.index_weights is not None
        q, weights, keys = inputs.index_q[self.rows], inputs.index_weights[self.rows], cache.index_keys[self._keys]
        if self._is_shared:
            scores = index_score(q, keys, weights)  # keys [S, Di]
        else:
            scores = index_score(q[:, None], keys, weights[:, None])[:, 0]  # keys [rows, S, Di]
        return self._slots.gather(1, topk_select(scores, index_topk, self._visible))


def _group_by_length(rows: Sequence[_Row], index_topk: int) -> list[list[int]]:
    """Indices of the rows to score; together those of similar length, as long as their keys fit a block."""
    groups: list[list[int]] = []
    order = sorted((i for i, row in enumerate(rows) if row.visible > index_topk), key=lambda i: rows[i].visible)
    for index in order:
        visible = rows[index].visible
        group = groups[-1] if groups else []
        if group and visible < 1.5 * rows[group[0]].visible and (len(group) + 1) * visible * 128 <= BLOCK_ELEMENTS:
            group.append(index)
        else:
            groups.append([index])
    return groups


class _Prefill:
    """A chunk of one sequence; all its queries see at most index_topk positions, or all see more."""

    def __init__(self, span: Segment, row: int, index_topk: int) -> None:
        self.span = span
        self.rows = slice(row, row + span.num_tokens)
        self.index_topk = index_topk
        self._keys = span.table.rows(span.end)
        self._visible = torch.arange(span.start + 1, span.end + 1, device=span.table.slots(0, 0).device)

    @property
    def is_sparse(self) -> bool:
        return self.span.end > self.index_topk

    def attend(self, cache: LayerCache, mla: MLA, inputs: AttentionInputs) -> Tensor:
        latent, k_pe = _read(cache, self._keys, mla, inputs.q_nope.dtype)
        expanded = mla.expand(latent) if self._is_cheaper_expanded(mla) else None
        outputs = []
        for block in self._blocks(inputs, mla):
            visible = self._visible[block]
            part = _take(inputs, block)
            indices = self._select(cache, part, visible) if self.is_sparse else None
            if expanded is not None:
                out = expanded_mla(part.q_nope, part.q_pe, expanded[0], k_pe, expanded[1], visible, mla.scale, indices)
            elif indices is not None:
                out = _unabsorb(sparse_mla(_absorb(part.q_nope, mla), part.q_pe, latent, k_pe, indices, mla.scale), mla)
            else:
                out = _unabsorb(dense_mla(_absorb(part.q_nope, mla), part.q_pe, latent, k_pe, visible, mla.scale), mla)
            outputs.append(out)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _select(self, cache: LayerCache, inputs: AttentionInputs, visible: Tensor) -> Tensor:
        assert inputs.index_q is not None
        assert inputs.index_weights is not None
        scores = index_score(inputs.index_q, cache.index_keys[self._keys], inputs.index_weights)
        return topk_select(scores, self.index_topk, visible)

    def _is_cheaper_expanded(self, mla: MLA) -> bool:
        """Compare multiplications a head: expanding all keys once, or absorbing every query."""
        queries, keys, heads_width = self.span.num_tokens, self.span.end, mla.nope_dim + mla.v_dim
        seen = self.index_topk * GATHER_COST if self.is_sparse else keys
        expanded = keys * heads_width * mla.kv_lora_rank + queries * keys * (heads_width + mla.rope_dim)
        absorbed = queries * heads_width * mla.kv_lora_rank + queries * seen * (2 * mla.kv_lora_rank + mla.rope_dim)
        return expanded <= absorbed

    def _blocks(self, inputs: AttentionInputs, mla: MLA) -> Iterator[slice]:
        """Slices of the queries, so that no intermediate grows beyond BLOCK_ELEMENTS."""
        a_query = self.span.end * mla.heads
        if inputs.index_q is not None and self.is_sparse:
            a_query = max(a_query, self.span.end * inputs.index_q.shape[1], self.index_topk * mla.kv_lora_rank)
        step = max(BLOCK_ELEMENTS // a_query, 1)
        for start in range(0, self.span.num_tokens, step):
            yield slice(start, min(start + step, self.span.num_tokens))


def _split_at(segment: Segment, index_topk: int) -> list[Segment]:
    """The part of a segment whose queries see at most index_topk positions, and the rest."""
    if segment.start < index_topk < segment.end:
        dense = index_topk - segment.start
        rest = Segment(segment.table, index_topk, segment.num_tokens - dense)
        return [Segment(segment.table, segment.start, dense), rest]
    return [segment]


def _take(inputs: AttentionInputs, rows: slice) -> AttentionInputs:
    return AttentionInputs._make(None if tensor is None else tensor[rows] for tensor in inputs)


def attend_slots(cache: LayerCache, mla: MLA, inputs: AttentionInputs, slots: Tensor) -> Tensor:
    """Attention of every row over its slots [T, K], -1 unused -> [T, H, v]."""
    q_latent = _absorb(inputs.q_nope, mla)
    if cache.records.dtype == FP8_RECORDS:
        return _unabsorb(sparse_mla_fp8(q_latent, inputs.q_pe, cache.records, slots, mla.scale), mla)
    latent, k_pe, indices = _as_dtype(cache, slots, mla, q_latent.dtype)
    return _unabsorb(sparse_mla(q_latent, inputs.q_pe, latent, k_pe, indices, mla.scale), mla)


def _absorb(q_nope: Tensor, mla: MLA) -> Tensor:
    """Queries in the latent space: [T, H, nope] -> [T, H, C]."""
    return torch.bmm(q_nope.transpose(0, 1), mla.w_uk).transpose(0, 1)


def _unabsorb(out: Tensor, mla: MLA) -> Tensor:
    """Values of attended latents: [T, H, C] -> [T, H, v]."""
    return torch.bmm(out.transpose(0, 1), mla.w_uv.transpose(1, 2)).transpose(0, 1)


def _read(cache: LayerCache, rows: slice | Tensor, mla: MLA, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """latent and k_pe of some rows, as floats."""
    if cache.records.dtype == FP8_RECORDS:
        latent, k_pe = read_fp8_records(cache.records[rows], mla.kv_lora_rank)
        return latent.to(dtype), k_pe.to(dtype)
    latent, k_pe = cache.records[rows].to(dtype).split((mla.kv_lora_rank, mla.rope_dim), -1)
    return latent, k_pe


def _as_dtype(cache: LayerCache, slots: Tensor, mla: MLA, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """latent, k_pe and indices into them; a cache of another float dtype is gathered first and converted."""
    if cache.records.dtype == dtype:
        return cache.latent, cache.k_pe, slots
    latent, k_pe = _read(cache, slots.clamp_min(0).flatten(), mla, dtype)
    indices = torch.arange(slots.numel(), device=slots.device).view_as(slots)
    return latent, k_pe, indices.masked_fill(slots < 0, -1)
