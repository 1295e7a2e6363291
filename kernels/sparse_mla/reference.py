"""Sparse absorbed attention in plain PyTorch: gather, score, softmax, weigh."""

from __future__ import annotations

import torch
from torch import Tensor

from v32.kernels.kv_append.reference import read_fp8_records


def sparse_mla(q_latent: Tensor, q_pe: Tensor, latent: Tensor, k_pe: Tensor, indices: Tensor, scale: float) -> Tensor:
    unused = indices < 0
    rows = indices.clamp_min(0)
    keys, keys_pe = latent[rows], k_pe[rows]  # [T, K, C], [T, K, R]
    scores = (q_latent @ keys.transpose(-1, -2) + q_pe @ keys_pe.transpose(-1, -2)).float() * scale
    scores = scores.masked_fill(unused[:, None], -torch.inf)
    return scores.softmax(-1).to(keys.dtype) @ keys


def sparse_mla_fp8(q_latent: Tensor, q_pe: Tensor, records: Tensor, indices: Tensor, scale: float) -> Tensor:
    """Only the selected records are decoded."""
    chosen = read_fp8_records(records[indices.clamp_min(0).flatten()], q_latent.shape[-1])
    latent, k_pe = (part.to(q_latent.dtype) for part in chosen)
    rows = torch.arange(indices.numel(), device=indices.device).view_as(indices)
    return sparse_mla(q_latent, q_pe, latent, k_pe, rows.masked_fill(indices < 0, -1), scale)
