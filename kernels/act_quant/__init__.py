"""Quantisation of activations to FP8 e4m3, one scale per row and 128 consecutive values."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.act_quant import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu

BLOCK = 128


def act_quant(x: Tensor, *, block: int = BLOCK, ue8m0: bool = True) -> tuple[Tensor, Tensor]:
    """x [..., D] -> codes float8_e4m3fn [..., D], scales float32 [..., ceil(D/block)]; x ≈ codes * scale.

    scale = max(|x|, 1e-4) / 448 of the block, rounded up to a power of two with `ue8m0` (DeepSeek's reference
    kernel, `scale_fmt: ue8m0`); codes are rounded to nearest even and saturate at ±448.
    """
    if runs_on_gpu(x) and block & (block - 1) == 0:
        from v32.kernels.act_quant import triton

        return triton.act_quant(x, block, ue8m0)
    return reference.act_quant(x, block, ue8m0)


def act_round(x: Tensor, *, block: int = BLOCK, ue8m0: bool = True) -> Tensor:
    """x as it comes back from `act_quant`, in the dtype of x; exact in bfloat16 with `ue8m0`."""
    return act_dequant(*act_quant(x, block=block, ue8m0=ue8m0), block=block).to(x.dtype)


def act_dequant(codes: Tensor, scales: Tensor, *, block: int = BLOCK) -> Tensor:
    """codes * scale in float32, [..., D]."""
    return reference.act_dequant(codes, scales, block)
