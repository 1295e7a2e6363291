"""The routed experts: each token passes its chosen SwiGLU blocks, the results are weighed and summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from v32.kernels.fp8_gemm import ActScaleFormat
from v32.kernels.moe_experts import cpu, reference
from v32.kernels.triton_support.dispatch import runs_on_gpu


class ExpertWeights(NamedTuple):
    """One expert: gate and up [I, D], down [D, I]; float, or FP8 e4m3 with a scale for each 128 x 128 block."""

    gate: Tensor
    up: Tensor
    down: Tensor
    gate_scale: Tensor | None = None
    up_scale: Tensor | None = None
    down_scale: Tensor | None = None


def moe_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    experts: Sequence[ExpertWeights],
    act_scale_fmt: ActScaleFormat | None = None,
) -> Tensor:
    """y[t] = Σ_k weights[t, k] * expert_{indices[t, k]}(x[t]), summed in float32.

    x [T, D], indices int64 [T, K], weights float32 [T, K] -> float32 [T, D]. With `act_scale_fmt` the inputs of FP8
    weights are quantised, see `fp8_gemm`.
    """
    if runs_on_gpu(x, weights, experts[0].gate):
        from v32.kernels.moe_experts import triton

        return triton.moe_experts(x, indices, weights, experts, act_scale_fmt)
    y = cpu.moe_experts(x, indices, weights, experts) if act_scale_fmt is None else None
    return reference.moe_experts(x, indices, weights, experts, act_scale_fmt) if y is None else y
