"""Rotary position embedding on a GPU; pairs are formed in registers, memory is read and written in whole rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.gpu import Gpu, gpu_of

HEADS_A_PROGRAM = 16


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, gpu: Gpu | None = None) -> Tensor:
    gpu = gpu or gpu_of(x)
    heads = x if x.dim() == 3 else x[:, None]
    heads = heads if heads.stride(-1) == 1 else heads.contiguous()
    num_tokens, num_heads, width = heads.shape
    y = torch.empty(heads.shape, dtype=x.dtype, device=x.device)
    gpu.launch(
        _rope,
        (num_tokens, triton.cdiv(num_heads, HEADS_A_PROGRAM)),
        *(heads, cos.contiguous(), sin.contiguous(), y, num_heads, width // 2, heads.stride(0), heads.stride(1)),
        HEADS=HEADS_A_PROGRAM,
        HALF=triton.next_power_of_2(width // 2),
        INTERLEAVED=interleaved,
        num_warps=2,
        num_stages=1,
    )
    return y.view(x.shape)


@triton.jit
def _rope(
    x_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_heads: tl.tensor,
    half: tl.tensor,
    x_token_stride: tl.tensor,
    x_head_stride: tl.tensor,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, HALF)
    x_row = x_ptr + token * x_token_stride + head[:, None].to(tl.int64) * x_head_stride
    y_row = y_ptr + (token * num_heads + head[:, None]) * half * 2
    inside = (head < num_heads)[:, None] & (pair < half)[None, :]
    cos = tl.load(cos_ptr + token * half + pair, mask=pair < half, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + token * half + pair, mask=pair < half, other=0.0).to(tl.float32)[None, :]
    if INTERLEAVED:
        column = tl.arange(0, 2 * HALF)
        whole = (head < num_heads)[:, None] & (column < 2 * half)[None, :]
        x = tl.load(x_row + column[None, :], mask=whole, other=0.0)
        a, b = tl.split(tl.reshape(x, (HEADS, HALF, 2)))
        a, b = a.to(tl.float32), b.to(tl.float32)
        y = tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (HEADS, 2 * HALF))
        tl.store(y_row + column[None, :], y.to(y_ptr.dtype.element_ty), mask=whole)
    else:
        a = tl.load(x_row + pair[None, :], mask=inside, other=0.0).to(tl.float32)
        b = tl.load(x_row + half + pair[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(y_row + pair[None, :], (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=inside)
        tl.store(y_row + half + pair[None, :], (a * sin + b * cos).to(y_ptr.dtype.element_ty), mask=inside)
