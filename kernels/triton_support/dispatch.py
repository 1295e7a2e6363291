"""Whether an operation runs its Triton kernel; without importing Triton, so that a CPU never pays for it."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)


def runs_on_gpu(first: Tensor, *rest: Tensor) -> bool:
    """True for tensors of a CUDA or ROCm device that nothing has to be differentiated through.

    The kernels have no backward pass: where autograd records, the reference runs, on the GPU as well. So it does for
    float64, and where Triton is not installed.
    """
    if not (first.is_cuda and _has_triton()) and not _interprets():
        return False
    tensors = (first, *rest)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return all(tensor.dtype in _FLOATS for tensor in tensors if tensor.is_floating_point())


@cache
def _interprets() -> bool:
    """V32_INTERPRET=1: what would run on a GPU runs in Triton's interpreter, on tensors of the CPU."""
    if os.environ.get("V32_INTERPRET") != "1":
        return False
    from v32.kernels.triton_support.interpreter import interpret

    interpret()
    return True


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
