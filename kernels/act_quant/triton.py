"""Block quantisation on a GPU; codes and scales equal the reference bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.codes import quantize_blocks
from v32.kernels.triton_support.gpu import Gpu, gpu_of

BLOCKS_A_PROGRAM = 8


def act_quant(x: Tensor, block: int, ue8m0: bool, gpu: Gpu | None = None) -> tuple[Tensor, Tensor]:
    gpu = gpu or gpu_of(x)
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    num_blocks = triton.cdiv(width, block)
    codes = torch.empty(rows.shape, dtype=torch.uint8, device=x.device)
    scales = torch.empty(len(rows), num_blocks, dtype=torch.float32, device=x.device)
    gpu.launch(
        _act_quant,
        (len(rows), triton.cdiv(num_blocks, BLOCKS_A_PROGRAM)),
        *(rows, codes, scales, width, num_blocks, rows.stride(0)),
        BLOCK=block,
        BLOCKS=BLOCKS_A_PROGRAM,
        UE8M0=ue8m0,
        num_warps=4,
        num_stages=1,
    )
    return codes.view(torch.float8_e4m3fn).view(x.shape), scales.view(*x.shape[:-1], num_blocks)


@triton.jit
def _act_quant(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    width: tl.tensor,
    num_blocks: tl.tensor,
    x_stride: tl.tensor,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    UE8M0: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + row * x_stride + column, mask=column < width, other=0.0).to(tl.float32)
    codes, scale = quantize_blocks(x, UE8M0)
    tl.store(codes_ptr + row * width + column, codes, mask=column < width)
    tl.store(scales_ptr + row * num_blocks + block, scale, mask=block < num_blocks)
