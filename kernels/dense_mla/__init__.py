"""Multi-head latent attention over all visible positions, absorbed and expanded."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.dense_mla import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu


def dense_mla(q_latent: Tensor, q_pe: Tensor, latent: Tensor, k_pe: Tensor, visible: Tensor, scale: float) -> Tensor:
    """As `sparse_mla` with all positions < visible[t] (int [T]) selected; -> [T, H, C]."""
    if runs_on_gpu(q_latent, latent):
        from v32.kernels.dense_mla import triton

        return triton.dense_mla(q_latent, q_pe, latent, k_pe, visible, scale)
    return reference.dense_mla(q_latent, q_pe, latent, k_pe, visible, scale)


def expanded_mla(
    q_nope: Tensor,
    q_pe: Tensor,
    k_nope: Tensor,
    k_pe: Tensor,
    v: Tensor,
    visible: Tensor,
    scale: float,
    indices: Tensor | None = None,
) -> Tensor:
    """The multi-head form for prefill: keys and values are expanded from the latents by kv_b_proj beforehand.

    q_nope [T, H, N], q_pe [T, H, R], k_nope [S, H, N], k_pe [S, R] (shared by the heads), v [S, H, V], visible int
    [T]; with `indices` [T, K] only those positions count (-1 unused) -> [T, H, V].
    """
    if runs_on_gpu(q_nope, k_nope, v):
        from v32.kernels.dense_mla import triton

        return triton.expanded_mla(q_nope, q_pe, k_nope, k_pe, v, visible, scale, indices)
    return reference.expanded_mla(q_nope, q_pe, k_nope, k_pe, v, visible, scale, indices)
