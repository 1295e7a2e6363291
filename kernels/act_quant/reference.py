"""Block quantisation of activations in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3_MAX = 448.0
AMAX_FLOOR = 1e-4


def round_up_to_power_of_two(scale: Tensor) -> Tensor:
    """The exact 2^ceil(log2 scale) of positive normal float32, from the bits: no logarithm can be off by an ulp."""
    bits = scale.float().view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).int()
    return (exponent << 23).view(torch.float32)


def act_quant(x: Tensor, block: int, ue8m0: bool) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    blocks = F.pad(x.float(), (0, -width % block)).unflatten(-1, (-1, block))
    scale = blocks.abs().amax(-1).clamp_min(AMAX_FLOOR) * torch.tensor(1 / E4M3_MAX, dtype=torch.float32)
    if ue8m0:
        scale = round_up_to_power_of_two(scale)
    codes = (blocks / scale[..., None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes.flatten(-2)[..., :width], scale


def act_dequant(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    return codes.float() * scales.repeat_interleave(block, -1)[..., : codes.shape[-1]]
