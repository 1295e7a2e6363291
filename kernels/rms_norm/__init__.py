"""RMS normalisation over the last dimension."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.act_quant import act_quant
from v32.kernels.rms_norm import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = weight * x / sqrt(mean(x²) + eps), in float32, rounded once to the dtype of x; x [..., D], weight [D]."""
    if runs_on_gpu(x, weight):
        from v32.kernels.rms_norm import triton

        return triton.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """rms_norm of the unrounded x + residual, and that sum rounded to the dtype of x for the next layer."""
    if runs_on_gpu(x, residual, weight):
        from v32.kernels.rms_norm import triton

        return triton.add_rms_norm(x, residual, weight, eps)
    return reference.add_rms_norm(x, residual, weight, eps)


def rms_norm_quant(x: Tensor, weight: Tensor, eps: float, *, ue8m0: bool = True) -> tuple[Tensor, Tensor]:
    """`act_quant(rms_norm(x))` in one pass: codes [..., D] and scales [..., ceil(D/128)]."""
    if runs_on_gpu(x, weight):
        from v32.kernels.rms_norm import triton

        return triton.rms_norm_quant(x, weight, eps, ue8m0)
    return act_quant(reference.rms_norm(x, weight, eps), ue8m0=ue8m0)
