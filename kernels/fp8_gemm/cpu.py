"""`linear` by the C++ kernels: weights stay as they are in memory, activations and sums are float32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from v32.kernels.native.library import is_native, library, matrix, pointer


def linear(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor | None:
    """x Wᵀ, or None where the kernels do not apply: x is not float32, gradients are wanted, there is no library."""
    if x.dtype != torch.float32 or not is_native(x, weight):
        return None
    native, loaded = matrix(weight, scale), library()
    if native is None or loaded is None:
        return None
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    count = x.numel() // x.shape[-1]
    loaded.v32_linear(ctypes.byref(native), pointer(x), ctypes.c_int64(count), pointer(y))
    return y
