"""Products with float weights in float32: the output head, the router and the indexer's head weights."""

from __future__ import annotations

import torch
from torch import Tensor

from v32.kernels.float_gemm import reference
from v32.kernels.fp8_gemm import cpu
from v32.kernels.triton_support.dispatch import runs_on_gpu


def float_gemm(x: Tensor, weight: Tensor) -> Tensor:
    """y = x Wᵀ, products and sums in float32: x [..., K], weight [N, K] -> float32 [..., N].

    Where both have the same dtype, or a CPU's kernels read the weight as it is, it is not converted in memory.
    """
    if runs_on_gpu(x, weight) and x.dtype == weight.dtype:
        from v32.kernels.float_gemm import triton

        return triton.float_gemm(x, weight)
    y = cpu.linear(x.float(), weight) if weight.dtype != torch.float32 else None
    return reference.float_gemm(x, weight) if y is None else y
