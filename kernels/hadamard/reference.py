"""The fast Walsh-Hadamard transform in plain PyTorch: log2(D) butterfly steps."""

from __future__ import annotations

import torch
from torch import Tensor


def hadamard(x: Tensor) -> Tensor:
    size = x.shape[-1]
    y, step = x.float(), 1
    while step < size:
        a, b = y.unflatten(-1, (-1, 2, step)).unbind(-2)
        y = torch.stack((a + b, a - b), -2).flatten(-3)
        step *= 2
    return (y * size**-0.5).to(x.dtype)
