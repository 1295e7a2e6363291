"""Index scores in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def index_score(q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    *batch, num_queries, heads, width = q.shape
    products = q.reshape(*batch, num_queries * heads, width).float() @ k.float().transpose(-1, -2)
    products = torch.relu(products).unflatten(-2, (num_queries, heads))  # [..., T, H, S]
    return (weights.float().unsqueeze(-2) @ products).squeeze(-2)
