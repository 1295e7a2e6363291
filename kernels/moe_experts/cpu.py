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
    loaded = library()
    if loaded is None or x.dtype != torch.float32 or not is_native(x, weights, experts[0].gate):
        return None
    # Pointers are made anew for the experts that are wanted: none can be stale, and most are not wanted.
    wanted, places = indices.unique(return_inverse=True)
    array = (NativeExpert * len(wanted))()
    for native, number in zip(array, wanted.tolist(), strict=True):
        parts = [matrix(*pair) for pair in zip(experts[number][:3], experts[number][3:], strict=True)]
        if any(part is None for part in parts):
            return None
        native.gate, native.up, native.down = parts
    x, places, weights = x.contiguous(), places.contiguous(), weights.float().contiguous()
    y = torch.zeros_like(x)
    if len(wanted):
        sizes = [ctypes.c_int64(size) for size in (len(wanted), indices.shape[1], len(x))]
        loaded.v32_moe_experts(array, *sizes, pointer(places), pointer(weights), pointer(x), pointer(y))
    return y
