"""Products of bfloat16, float16 or float32 on a GPU that leave as float32; tiles as in `fp8_gemm`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.fp8_gemm.triton import BLOCK, scaled_product, tile_for
from v32.kernels.triton_support.gpu import Gpu, gpu_of


def float_gemm(x: Tensor, weight: Tensor, gpu: Gpu | None = None) -> Tensor:
    gpu = gpu or gpu_of(x)
    (num_rows, width), rows = weight.shape, x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    y = torch.empty(len(rows), num_rows, dtype=torch.float32, device=x.device)
    tile = tile_for(gpu, len(rows), False)
    gpu.launch(
        _float_gemm,
        (triton.cdiv(num_rows, tile.rows), triton.cdiv(len(rows), tile.tokens)),
        *(rows, weight.contiguous(), y, len(rows), num_rows, width, rows.stride(0)),
        TOKENS=tile.tokens,
        ROWS=tile.rows,
        SWAPPED=tile.is_swapped,
        EVEN_K=width % BLOCK == 0,
        # With four warps 64 tokens spill on sm_120.
        num_warps=8 if tile.tokens > 16 else tile.num_warps,
        num_stages=2 if x.dtype == torch.float32 else tile.num_stages,
    )
    return y.view(*x.shape[:-1], num_rows)


@triton.jit
def _float_gemm(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_tokens: tl.tensor,
    num_rows: tl.tensor,
    width: tl.tensor,
    x_stride: tl.tensor,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    SWAPPED: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    x_rows, weight_rows = x_ptr + token * x_stride, weight_ptr + row.to(tl.int64) * width
    acc = scaled_product(
        x_rows,
        x_rows,
        token < num_tokens,
        weight_rows,
        weight_rows,
        row < num_rows,
        width,
        TOKENS,
        ROWS,
        SWAPPED,
        False,
        False,
        False,
        EVEN_K,
    )
    if SWAPPED:
        acc = tl.trans(acc)
    inside = (token < num_tokens)[:, None] & (row < num_rows)[None, :]
    tl.store(y_ptr + token[:, None] * num_rows + row[None, :], acc, mask=inside)
