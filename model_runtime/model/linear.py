"""A linear layer whose weight is float, or FP8 e4m3 with one scale for each 128 x 128 block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v32.kernels.fp8_gemm import ActScaleFormat, dequantize, fp8_gemm
from v32.kernels.fp8_gemm.cpu import linear


class Linear(nn.Module):
    """y = x Wᵀ in the dtype of x; `weight` [out, in], `weight_scale_inv` [⌈out/128⌉, ⌈in/128⌉] when it is FP8."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_scale_inv: nn.Parameter | None
        self.register_parameter("weight_scale_inv", None)
        self.act_scale_fmt: ActScaleFormat | None = None
        """Set: inputs of an FP8 weight are quantised too, as DeepSeek's kernels do."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight_scale_inv is None:
            if self.weight.dtype == x.dtype:
                return F.linear(x, self.weight)
            y = linear(x, self.weight)
            return F.linear(x, self.weight.to(x.dtype)) if y is None else y
        return fp8_gemm(x, self.weight, self.weight_scale_inv, self.act_scale_fmt)

    def float_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight as float [out, in]: itself, or dequantised."""
        if self.weight_scale_inv is None:
            return self.weight.to(dtype)
        return dequantize(self.weight, self.weight_scale_inv, dtype)
