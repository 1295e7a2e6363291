"""Block-scaled FP8 products on a GPU, in tiles of 128 along K: each tile is summed by the matrix instruction from zero,
scaled, and added in float32, so the instruction's short accumulator never holds a long sum.

    operands     activations quantised or float; weights e4m3 codes or float
    has_fp8      quantised operands go to the FP8 instruction; elsewhere both are decoded to float16, which is exact
    swapped      few tokens are the columns of the matrix instruction and weight rows its rows: on Hopper and Blackwell
                 FP8 instructions have 64 or 128 rows, and 16 tokens would leave most of them empty
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.act_quant.triton import act_quant
from v32.kernels.triton_support.codes import decode_e4m3
from v32.kernels.triton_support.gpu import Gpu, gpu_of

BLOCK = 128


class Tile(NamedTuple):
    """Tokens and weight rows of one program, and how it is run."""

    tokens: int
    rows: int
    num_warps: int
    num_stages: int
    is_swapped: bool = False


def tile_for(gpu: Gpu, num_tokens: int, has_codes: bool) -> Tile:
    """The tuning table. It depends on the number of tokens only through its three bands."""
    native = gpu.has_fp8 and has_codes
    if gpu.arch == "interpreter":
        return Tile(16, 32, 1, 1, is_swapped=num_tokens <= 16)
    if num_tokens <= 16:
        return Tile(16, 64, 4, 4 if native else 3, is_swapped=native and gpu.has_wgmma)
    if gpu.is_amd:
        return Tile(64, 64, 4, 2)
    if num_tokens <= 128 or not native:
        return Tile(64, 64, 4, 3)
    return Tile(128, 128, 8, 3)


def fp8_gemm(x: Tensor, weight: Tensor, scale: Tensor, act_scale_fmt: str | None, gpu: Gpu | None = None) -> Tensor:
    gpu = gpu or gpu_of(x)
    (num_rows, width), rows = weight.shape, x.reshape(-1, x.shape[-1])
    y = torch.empty(len(rows), num_rows, dtype=x.dtype, device=x.device)
    operand, x_scales = quantized(rows, act_scale_fmt, gpu)
    tile = tile_for(gpu, len(rows), act_scale_fmt is not None)
    gpu.launch(
        _fp8_gemm,
        (triton.cdiv(num_rows, tile.rows), triton.cdiv(len(rows), tile.tokens)),
        *(operand, x_scales, weight.contiguous().view(torch.uint8), scale.contiguous(), y),
        *(len(rows), num_rows, width, operand.stride(0)),
        TOKENS=tile.tokens,
        ROWS=tile.rows,
        SWAPPED=tile.is_swapped,
        X_CODES=act_scale_fmt is not None,
        NATIVE=gpu.has_fp8,
        EVEN_K=width % BLOCK == 0,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return y.view(*x.shape[:-1], num_rows)


def quantized(rows: Tensor, act_scale_fmt: str | None, gpu: Gpu) -> tuple[Tensor, Tensor]:
    """The left operand of a product and its scales: codes as uint8, or the rows themselves (twice)."""
    if act_scale_fmt is None:
        rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        return rows, rows
    codes, scales = act_quant(rows, BLOCK, act_scale_fmt == "ue8m0", gpu)
    return codes.view(torch.uint8), scales


@triton.jit
def _fp8_gemm(
    x_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_tokens: tl.tensor,
    num_rows: tl.tensor,
    width: tl.tensor,
    x_stride: tl.tensor,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    SWAPPED: tl.constexpr,
    X_CODES: tl.constexpr,
    NATIVE: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    num_blocks = tl.cdiv(width, 128)
    acc = scaled_product(
        x_ptr + token * x_stride,
        x_scale_ptr + token * num_blocks,
        token < num_tokens,
        weight_ptr + row.to(tl.int64) * width,
        weight_scale_ptr + (tl.program_id(0) * ROWS // 128) * num_blocks,
        row < num_rows,
        width,
        TOKENS,
        ROWS,
        SWAPPED,
        X_CODES,
        True,
        NATIVE,
        EVEN_K,
    )
    if SWAPPED:
        acc = tl.trans(acc)
    inside = (token < num_tokens)[:, None] & (row < num_rows)[None, :]
    tl.store(y_ptr + token[:, None] * num_rows + row[None, :], acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scaled_product(
    x_rows: tl.tensor,
    x_scales: tl.tensor,
    is_token: tl.tensor,
    weight_rows: tl.tensor,
    weight_scales: tl.tensor,
    is_row: tl.tensor,
    width: tl.tensor,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    SWAPPED: tl.constexpr,
    X_CODES: tl.constexpr,
    W_CODES: tl.constexpr,
    NATIVE: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:
    """x Wᵀ over all of K in float32, [TOKENS, ROWS]; [ROWS, TOKENS] if SWAPPED.

    x_rows, x_scales, weight_rows: pointers to the starts of the rows; weight_scales: pointer to the scales of the one
    block of 128 rows that all weight rows belong to.
    """
    if SWAPPED:
        acc = tl.zeros((ROWS, TOKENS), tl.float32)
    else:
        acc = tl.zeros((TOKENS, ROWS), tl.float32)
    for block in range(tl.cdiv(width, 128)):
        k = block * 128 + tl.arange(0, 128)
        if EVEN_K:
            x_inside = is_token[:, None]
            weight_inside = is_row[:, None]
        else:
            x_inside = is_token[:, None] & (k < width)[None, :]
            weight_inside = is_row[:, None] & (k < width)[None, :]
        x = tl.load(x_rows[:, None] + k[None, :], mask=x_inside, other=0)
        weight = tl.load(weight_rows[:, None] + k[None, :], mask=weight_inside, other=0)
        if W_CODES:
            scale = tl.load(weight_scales + block)
            if X_CODES:
                if NATIVE:
                    x = x.to(tl.float8e4nv, bitcast=True)
                    weight = weight.to(tl.float8e4nv, bitcast=True)
                else:
                    x = decode_e4m3(x)
                    weight = decode_e4m3(weight)
                    scale *= 65536.0
            else:
                weight = decode_e4m3(weight).to(x.dtype)
                scale *= 256.0
        if SWAPPED:
            part = tl.dot(weight, tl.trans(x), input_precision="ieee")
        else:
            part = tl.dot(x, tl.trans(weight), input_precision="ieee")
        if X_CODES:
            token_scale = tl.load(x_scales + block, mask=is_token, other=0.0) * scale
            if SWAPPED:
                acc += part * token_scale[None, :]
            else:
                acc += part * token_scale[:, None]
        elif W_CODES:
            acc += part * scale
        else:
            acc += part
    return acc
