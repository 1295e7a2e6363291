"""Index scores in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def index_score(q: Tensor, k: Tensor, weights: Tensor, k_scale: Tensor | None = None) -> Tensor:
    *batch, num_queries, heads, width = q.shape
    products = q.reshape(*batch, num_queries * heads, width).float() @ k.float().transpose(-1, -2)
    products = torch.relu(products).unflatten(-2, (num_queries, heads))  # [..., T, H, S]
    scores = (weights.float().unsqueeze(-2) @ products).squeeze(-2)
    return scores if k_scale is None else scores * k_scale.unsqueeze(-2)


def paged_index_score(
    q: Tensor,
    index_keys: Tensor,
    weights: Tensor,
    block_table: Tensor,
    visible: Tensor,
    page_size: int,
    k_scale: Tensor | None = None,
) -> Tensor:
    offsets = torch.arange(page_size, device=q.device)
    slots = (block_table[:, :, None].long() * page_size + offsets).flatten(1)  # [B, S]
    position = torch.arange(slots.shape[1], device=q.device)
    slots = torch.where(position < visible[:, None], slots, 0)
    scale = None if k_scale is None else k_scale[slots]
    return index_score(q[:, None], index_keys[slots], weights[:, None], scale)[:, 0]
