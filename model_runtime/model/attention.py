"""The seam between a layer's projections and the context they attend to.

A layer projects its input to queries, latents and index keys; an `Attention` object decides what each query sees:
whole sequences (`FullAttention`), a paged cache (the engine) or packed training batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from v32.kernels.dense_mla import expanded_mla
from v32.kernels.index_score import index_score
from v32.kernels.topk_select import topk_select

if TYPE_CHECKING:
    from v32.model_runtime.model.mla import MLA
    from v32.model_runtime.model.transformer import DeepseekV32Model


class AttentionInputs(NamedTuple):
    """What one layer computed of N tokens; all rotary parts are rotated."""

    q_nope: Tensor  # [N, H, qk_nope_head_dim]
    q_pe: Tensor  # [N, H, qk_rope_head_dim]
    latent: Tensor  # [N, kv_lora_rank], normed
    k_pe: Tensor  # [N, qk_rope_head_dim], one head for all
    index_q: Tensor | None  # [N, index_n_heads, index_head_dim]; None unless needs_index_queries
    index_k: Tensor  # [N, index_head_dim]
    index_weights: Tensor | None  # float32 [N, index_n_heads], every scale folded in


class Attention(Protocol):
    """Called once a layer, in layer order."""

    @property
    def needs_index_queries(self) -> bool:
        """False while no query sees more than index_topk positions: nothing has to be scored then."""

    def __call__(self, layer_idx: int, mla: MLA, inputs: AttentionInputs) -> Tensor:
        """Attention output before o_proj, [N, H, v_head_dim]."""


class WholeModel(Protocol):
    """An `Attention` that may know a faster way through all layers at once."""

    def run(self, model: DeepseekV32Model, input_ids: Tensor, positions: Tensor) -> Tensor | None:
        """What `model` returns for this batch, or None: then it is asked layer by layer."""


class FullAttention:
    """Whole sequences without a cache: tokens of `lengths[0]`, then of `lengths[1]`, …, each from position 0."""

    def __init__(self, lengths: Sequence[int], index_topk: int) -> None:
        self.lengths = list(lengths)
        self.index_topk = index_topk

    @property
    def needs_index_queries(self) -> bool:
        return max(self.lengths) > self.index_topk

    def __call__(self, layer_idx: int, mla: MLA, inputs: AttentionInputs) -> Tensor:
        parts = zip(*(_split(tensor, self.lengths) for tensor in inputs))
        return torch.cat([self._attend(mla, AttentionInputs(*part)) for part in parts])

    def _attend(self, mla: MLA, inputs: AttentionInputs) -> Tensor:
        length = len(inputs.latent)
        visible = torch.arange(1, length + 1, device=inputs.latent.device)
        indices = None
        if length > self.index_topk:
            assert inputs.index_q is not None
            assert inputs.index_weights is not None
            scores = index_score(inputs.index_q, inputs.index_k, inputs.index_weights)
            indices = topk_select(scores, self.index_topk, visible)
        k_nope, v = mla.expand(inputs.latent)
        return expanded_mla(inputs.q_nope, inputs.q_pe, k_nope, inputs.k_pe, v, visible, mla.scale, indices)


def _split(tensor: Tensor | None, lengths: list[int]) -> Sequence[Tensor | None]:
    return [None] * len(lengths) if tensor is None else tensor.split(lengths)
