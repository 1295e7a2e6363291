"""Exact top-k in plain PyTorch: a stable sort keeps the lower position first among equals."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_select(scores: Tensor, k: int, visible: Tensor) -> Tensor:
    positions = torch.arange(scores.shape[-1], device=scores.device)
    hidden = positions >= visible[:, None]
    ranked = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).masked_fill(hidden, -torch.inf)
    best = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return best.masked_fill(best >= visible[:, None], -1)
