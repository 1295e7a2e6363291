"""RMS normalisation on a GPU: one program a row, optionally behind a residual sum and before quantisation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.codes import quantize_blocks
from v32.kernels.triton_support.gpu import Gpu, gpu_of

QUANT_BLOCK = 128


def rms_norm(x: Tensor, weight: Tensor, eps: float, gpu: Gpu | None = None) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, eps, y, None, None, False, gpu)
    return y


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, gpu: Gpu | None = None
) -> tuple[Tensor, Tensor]:
    y, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _launch(x, residual, weight, eps, y, total, None, False, gpu)
    return y, total


def rms_norm_quant(x: Tensor, weight: Tensor, eps: float, ue8m0: bool, gpu: Gpu | None = None) -> tuple[Tensor, Tensor]:
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    num_blocks = triton.cdiv(x.shape[-1], QUANT_BLOCK)
    scales = torch.empty(*x.shape[:-1], num_blocks, dtype=torch.float32, device=x.device)
    _launch(x, None, weight, eps, codes, None, scales, ue8m0, gpu)
    return codes.view(torch.float8_e4m3fn), scales


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    out: Tensor,
    total: Tensor | None,
    scales: Tensor | None,
    ue8m0: bool,
    gpu: Gpu | None,
) -> None:
    gpu = gpu or gpu_of(x)
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    others = rows if residual is None else residual.reshape(-1, width).contiguous()
    block = max(triton.next_power_of_2(width), QUANT_BLOCK)
    gpu.launch(
        _rms_norm,
        (len(rows),),
        *(rows, others, weight, out, out if total is None else total, out if scales is None else scales),
        *(width, triton.cdiv(width, QUANT_BLOCK), rows.stride(0), eps),
        BLOCK=block,
        ADD=residual is not None,
        QUANT=scales is not None,
        UE8M0=ue8m0,
        QUANT_BLOCK=QUANT_BLOCK,
        num_warps=min(max(block // 512, 1), 8),
        num_stages=1,
    )


@triton.jit
def _rms_norm(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    out_ptr: tl.tensor,
    total_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    width: tl.tensor,
    num_blocks: tl.tensor,
    x_stride: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    QUANT: tl.constexpr,
    UE8M0: tl.constexpr,
    QUANT_BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(total_ptr + row * width + column, x.to(total_ptr.dtype.element_ty), mask=inside)
    # The norm is of the unrounded sum.
    norm = tl.sqrt_rn(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    y = (x / norm * weight).to(x_ptr.dtype.element_ty)
    if QUANT:
        blocks = tl.reshape(y, (BLOCK // QUANT_BLOCK, QUANT_BLOCK)).to(tl.float32)
        codes, scale = quantize_blocks(blocks, UE8M0)
        block = tl.arange(0, BLOCK // QUANT_BLOCK)
        tl.store(out_ptr + row * width + column, tl.reshape(codes, (BLOCK,)), mask=inside)
        tl.store(scales_ptr + row * num_blocks + block, scale, mask=block < num_blocks)
    else:
        tl.store(out_ptr + row * width + column, y, mask=inside)
