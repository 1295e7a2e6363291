"""Rotary position embedding in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if x.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    y = x.float()
    if interleaved:
        a, b = y[..., 0::2], y[..., 1::2]
        rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    else:
        a, b = y.chunk(2, -1)
        rotated = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
    return rotated.to(x.dtype)
