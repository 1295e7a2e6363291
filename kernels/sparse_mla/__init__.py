"""Multi-head latent attention over selected positions, in the absorbed (multi-query) form."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.sparse_mla import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu


def sparse_mla(q_latent: Tensor, q_pe: Tensor, latent: Tensor, k_pe: Tensor, indices: Tensor, scale: float) -> Tensor:
    """o[t, h] = Σ_s softmax_s((q_latent[t, h] · latent[s] + q_pe[t, h] · k_pe[s]) * scale) latent[s], s in indices[t].

    q_latent [T, H, C], q_pe [T, H, R], latent [S, C], k_pe [S, R], indices int64 [T, K] with -1 unused -> [T, H, C].
    Only the selected rows are gathered. Every query needs at least one position.
    """
    if runs_on_gpu(q_latent, latent):
        from v32.kernels.sparse_mla import triton

        return triton.sparse_mla(q_latent, q_pe, latent, k_pe, indices, scale)
    return reference.sparse_mla(q_latent, q_pe, latent, k_pe, indices, scale)


def sparse_mla_fp8(q_latent: Tensor, q_pe: Tensor, records: Tensor, indices: Tensor, scale: float) -> Tensor:
    """`sparse_mla` over the FP8 records of `kv_append`, uint8 [slots, record_bytes(C, R)]; latents are rounded to the
    dtype of q_latent before they are multiplied, which is exact in bfloat16.
    """
    if runs_on_gpu(q_latent):
        from v32.kernels.sparse_mla import triton

        return triton.sparse_mla_fp8(q_latent, q_pe, records, indices, scale)
    return reference.sparse_mla_fp8(q_latent, q_pe, records, indices, scale)
