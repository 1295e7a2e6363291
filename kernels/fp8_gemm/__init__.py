"""Products with weights stored as FP8 e4m3 in blocks of 128 x 128, one float32 scale a block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from v32.kernels.fp8_gemm import cpu, reference
from v32.kernels.triton_support.dispatch import runs_on_gpu

BLOCK = 128
ActScaleFormat = Literal["ue8m0", "float32"]
"""How activations are quantised, see `act_quant`: power-of-two scales, or scales as they come."""


def fp8_gemm(x: Tensor, weight: Tensor, scale: Tensor, act_scale_fmt: ActScaleFormat | None = None) -> Tensor:
    """y = x Wᵀ with W[i, j] = weight[i, j] * scale[i // 128, j // 128].

    x [..., K] float; weight [N, K] float8_e4m3fn; scale float32 [ceil(N/128), ceil(K/128)]; y [..., N] in the dtype
    of x. With `act_scale_fmt` x is quantised first, in blocks of 128 along K, and the product summed in float32, as
    the published FP8 kernels do; without, only the weight is 8-bit.
    """
    check_block_scales(weight, scale)
    if runs_on_gpu(x):
        from v32.kernels.fp8_gemm import triton

        return triton.fp8_gemm(x, weight, scale, act_scale_fmt)
    y = cpu.linear(x, weight, scale) if act_scale_fmt is None else None
    return reference.fp8_gemm(x, weight, scale, act_scale_fmt) if y is None else y


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """W as above, [N, K] in `dtype`."""
    check_block_scales(weight, scale)
    return reference.dequantize(weight, scale, dtype)


def check_block_scales(weight: Tensor, scale: Tensor) -> None:
    """Raise `ValueError` unless `scale` has one entry for each 128 x 128 block of `weight`."""
    expected = tuple(-(-size // BLOCK) for size in weight.shape)
    if tuple(scale.shape) != expected:
        raise ValueError(
            f"weight {tuple(weight.shape)} needs scales of shape {expected} (blocks of {BLOCK} x {BLOCK}), "
            f"got {tuple(scale.shape)}"
        )
