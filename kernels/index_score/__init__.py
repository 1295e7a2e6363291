"""Scores of the lightning indexer: which earlier positions a query should attend to."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.index_score import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu

__all__ = ["index_score", "paged_index_score"]


def index_score(q: Tensor, k: Tensor, weights: Tensor, k_scale: Tensor | None = None) -> Tensor:
    """I[t, s] = Σ_h weights[t, h] * relu(q[t, h] · k[s]) * k_scale[s], float32.

    q [..., T, H, D], k [..., S, D] (one head, shared), weights [..., T, H] with every scale folded in, k_scale
    [..., S] -> [..., T, S]. q and k are floats, or both codes float8_e4m3fn: then the scales of q belong in `weights`.
    """
    if runs_on_gpu(q, k, weights):
        from v32.kernels.index_score import triton

        return triton.index_score(q, k, weights, k_scale)
    return reference.index_score(q, k, weights, k_scale)


def paged_index_score(
    q: Tensor,
    index_keys: Tensor,
    weights: Tensor,
    block_table: Tensor,
    visible: Tensor,
    page_size: int,
    k_scale: Tensor | None = None,
) -> Tensor:
    """The scores of one query a sequence, with the keys left where they are in the cache.

    q [B, H, D], index_keys [slots, D], weights [B, H], block_table int [B, pages], visible int [B], k_scale [slots] ->
    float32 [B, pages * page_size]. Key s of row b is record block_table[b, s // page_size] * page_size + s % page_size;
    entries at and beyond visible[b] are undefined, and neither they nor their pages are read.
    """
    if runs_on_gpu(q, index_keys, weights):
        from v32.kernels.index_score import triton

        return triton.paged_index_score(q, index_keys, weights, block_table, visible, page_size, k_scale)
    return reference.paged_index_score(q, index_keys, weights, block_table, visible, page_size, k_scale)
