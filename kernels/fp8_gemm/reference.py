"""Block-scaled FP8 products in plain PyTorch: dequantise, then multiply."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from v32.kernels.act_quant.reference import act_dequant, act_quant

BLOCK = 128


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    rows, columns = weight.shape
    spread = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return (weight.float() * spread).to(dtype)


def fp8_gemm(x: Tensor, weight: Tensor, scale: Tensor, act_scale_fmt: str | None = None) -> Tensor:
    if act_scale_fmt is None:
        return F.linear(x, dequantize(weight, scale, x.dtype))
    rounded = act_dequant(*act_quant(x, BLOCK, act_scale_fmt == "ue8m0"), BLOCK)
    return F.linear(rounded, dequantize(weight, scale, torch.float32)).to(x.dtype)
