"""The experts by the C++ kernels, one call for all of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from v32.kernels.native.library import NativeExpert, is_native, library, matrix, pointer

if TYPE_CHECKING:
    from v32.kernels.moe_experts import ExpertWeights


def moe_experts(x: Tensor, indices: Tensor, weights: Tensor, experts: Sequence[ExpertWeights]) -> Tensor | None:
    """See `v32.kernels.moe_experts`; None where the kernels do not apply."""
    if x.dtype != torch.float32 or not is_native(x, weights, experts[0].gate):
        return None
    loaded = library()
    array = (NativeExpert * len(experts))()
    for native, expert in zip(array, experts, strict=True):
        parts = [matrix(*pair) for pair in zip(expert[:3], expert[3:], strict=True)]
        if loaded is None or any(part is None for part in parts):
            return None
        native.gate, native.up, native.down = parts
    x, indices, weights = x.contiguous(), indices.contiguous(), weights.float().contiguous()
    y = torch.zeros_like(x)
    sizes = [ctypes.c_int64(size) for size in (len(experts), indices.shape[1], len(x))]
    assert loaded is not None
    loaded.v32_moe_experts(array, *sizes, pointer(indices), pointer(weights), pointer(x), pointer(y))
    return y
