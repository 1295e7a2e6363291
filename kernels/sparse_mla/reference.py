"""Sparse absorbed attention in plain PyTorch: gather, score, softmax, weigh."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_mla(q_latent: Tensor, q_pe: Tensor, latent: Tensor, k_pe: Tensor, indices: Tensor, scale: float) -> Tensor:
    unused = indices < 0
    rows = indices.clamp_min(0)
    keys, keys_pe = latent[rows], k_pe[rows]  # [T, K, C], [T, K, R]
    scores = (q_latent @ keys.transpose(-1, -2) + q_pe @ keys_pe.transpose(-1, -2)).float() * scale
    scores = scores.masked_fill(unused[:, None], -torch.inf)
    return scores.softmax(-1).to(keys.dtype) @ keys
