"""The loaded library and what is passed to it: pointers of tensors, and `NativeMatrix` for weights of any dtype.

V32_NATIVE=0 turns the native kernels off. Where they cannot be built PyTorch computes, after one warning.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings

import torch
from torch import Tensor

from v32.kernels.native.compiler import NativeUnavailable, shared_library

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 2}


class NativeMatrix(ctypes.Structure):
    """`Matrix` of matrix.h. It holds no reference: whoever made it keeps the tensors."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    )


class NativeExpert(ctypes.Structure):
    """`Expert` of moe_experts/cpu.cpp, a SwiGLU block: gate and up [I, D], down [D, I]."""

    _fields_ = (("gate", NativeMatrix), ("up", NativeMatrix), ("down", NativeMatrix))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where there are none; says so once, with the remedy."""
    if os.environ.get("V32_NATIVE") == "0":
        return None
    try:
        # PyTorch is loaded by now and with it the OpenMP runtime: both use one team of threads.
        return ctypes.CDLL(str(shared_library()))
    except (NativeUnavailable, OSError) as error:
        warnings.warn(f"no native CPU kernels: {error}. PyTorch computes instead, several times slower.", stacklevel=2)
        return None


def is_native(*tensors: Tensor | None) -> bool:
    """Whether the library may compute with these: on the CPU, without gradients, and there is a library."""
    for tensor in tensors:
        if tensor is not None and (tensor.device.type != "cpu" or (tensor.requires_grad and torch.is_grad_enabled())):
            return False
    return library() is not None


def matrix(weight: Tensor, scale: Tensor | None = None) -> NativeMatrix | None:
    """A weight [N, K] as the kernels take it; None if its dtype or its strides are not theirs."""
    kind = _KINDS.get(weight.dtype)
    if kind is None or not weight.is_contiguous() or (kind == 2) != (scale is not None):
        return None
    if scale is not None and (scale.dtype != torch.float32 or not scale.is_contiguous()):
        return None
    rows, cols = weight.shape
    return NativeMatrix(weight.data_ptr(), scale.data_ptr() if scale is not None else None, rows, cols, kind)


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())
