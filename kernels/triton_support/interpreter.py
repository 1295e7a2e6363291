"""Triton's interpreter made faithful for bfloat16 and FP8, so that kernels can be proven without a GPU.

Triton 3.9 truncates float32 to bfloat16 where a GPU rounds, multiplies bfloat16 bit patterns as integers, and halves
one e4m3 conversion in fifty. `interpret` replaces the conversions and the matrix product by PyTorch's and refuses
arithmetic on bfloat16 and FP8 tensors outside of them: the kernels compute in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

_TYPES = {
    tl.float32: (torch.float32, np.float32),
    tl.float16: (torch.float16, np.float16),
    tl.bfloat16: (torch.bfloat16, np.uint16),
    tl.float8e4nv: (torch.float8_e4m3fn, np.uint8),
}
_BITS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}


def interpret() -> None:
    """Run the kernels of this process in the interpreter: those that are imported from now on. Once is enough."""
    if getattr(interpreter, "_is_faithful", False):
        return
    interpreter._is_faithful = True
    triton.knobs.runtime.interpret = True
    _interpret_language()
    builder = interpreter.InterpreterBuilder
    interpreter._convert_float = _converting(interpreter._convert_float)
    builder.create_dot = _widening_dot(builder.create_dot)
    builder.binary_op = _refusing_narrow(builder.binary_op)


def _interpret_language() -> None:
    """Triton's own functions (`tl.sum`, …) were bound when it was imported, perhaps before this was asked for."""
    interpreted: dict[Any, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("triton.language"):
            for key, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    function = interpreted.setdefault(value.fn, interpreter.InterpretedFunction(value.fn))
                    setattr(module, key, function)


def _converting(stock: Callable[..., Any]) -> Callable[..., Any]:
    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source not in _TYPES or target not in _TYPES:
            return stock(data, source, target, rounding)
        values = _to_torch(data, source).float()
        if target == tl.float8e4nv:
            values = values.clamp(-448, 448)
        converted = values.to(_TYPES[target][0])
        bits = converted.view(_BITS[converted.element_size()]).numpy()
        return bits.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[bits.itemsize]).reshape(np.shape(data))

    return convert


def _widening_dot(stock: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, accumulator: Any, *options: Any) -> Any:
        return stock(self, _widen(a), _widen(b), accumulator, *options)

    return create_dot


def _refusing_narrow(stock: Callable[..., Any]) -> Callable[..., Any]:
    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar in (tl.bfloat16, tl.float8e4nv):
            raise TypeError(f"arithmetic on {lhs.dtype.scalar} in a kernel; convert to float32 first")
        return stock(self, lhs, rhs, op)

    return binary_op


def _widen(handle: Any) -> Any:
    kind = handle.dtype.scalar
    if kind not in (tl.bfloat16, tl.float8e4nv):
        return handle
    return interpreter.TensorHandle(_to_torch(handle.data, kind).float().numpy(), tl.float32)


def _to_torch(data: Any, kind: Any) -> torch.Tensor:
    torch_type, numpy_type = _TYPES[kind]
    array = np.array(data, copy=True, order="C").view(numpy_type)
    if array.dtype == np.uint16:
        array = array.view(np.int16)
    return torch.from_numpy(array).view(torch_type)
