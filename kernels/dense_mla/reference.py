"""Dense latent attention in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_mla(q_latent: Tensor, q_pe: Tensor, latent: Tensor, k_pe: Tensor, visible: Tensor, scale: float) -> Tensor:
    scores = (q_latent @ latent.transpose(0, 1) + q_pe @ k_pe.transpose(0, 1)).float() * scale  # [T, H, S]
    scores = scores.masked_fill(_hidden(visible, latent.shape[0])[:, None], -torch.inf)
    return scores.softmax(-1).to(latent.dtype) @ latent


def expanded_mla(
    q_nope: Tensor,
    q_pe: Tensor,
    k_nope: Tensor,
    k_pe: Tensor,
    v: Tensor,
    visible: Tensor,
    scale: float,
    indices: Tensor | None,
) -> Tensor:
    num_keys, heads, _ = k_nope.shape
    q = torch.cat((q_nope, q_pe), -1).transpose(0, 1)  # [H, T, N + R]
    k = torch.cat((k_nope, k_pe[:, None].expand(-1, heads, -1)), -1).transpose(0, 1)
    mask = ~_hidden(visible, num_keys)
    if indices is not None:
        # Column S collects the unused entries and is cut off again.
        chosen = torch.zeros(mask.shape[0], num_keys + 1, dtype=torch.bool, device=mask.device)
        chosen.scatter_(1, torch.where(indices < 0, num_keys, indices), True)
        mask = mask & chosen[:, :-1]
    # One head size for all three keeps PyTorch on its fused path.
    padded = F.pad(v.transpose(0, 1), (0, max(q.shape[-1] - v.shape[-1], 0)))
    out = F.scaled_dot_product_attention(q[None], k[None], padded[None], attn_mask=mask[None, None], scale=scale)
    return out[0, ..., : v.shape[-1]].transpose(0, 1)


def _hidden(visible: Tensor, num_keys: int) -> Tensor:
    return torch.arange(num_keys, device=visible.device) >= visible[:, None]  # [T, S]
