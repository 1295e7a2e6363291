"""The routed experts on a GPU: tokens sorted by expert, every tile of the product belongs to one expert.

    pairs   0 1 2 3 4 5 …        pair p is choice p % K of token p // K
    sorted  2 5 | 0 | 1 3 4 …    by expert, stable
    tiles   [2 5 · ·] [0 · · ·] [1 3 4 ·]    TOKENS rows each; the rest of an expert's last tile is masked

The number of tiles is bounded by shapes alone, so nothing waits for the router and a CUDA graph can hold it all; tiles
beyond the last return at once. Weights are reached through a table of addresses, so experts may lie anywhere. The
results of a token's experts are added in the order of its choices: no atomics, the same sum in every batch.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from v32.kernels.fp8_gemm.triton import BLOCK, quantized, scaled_product, tile_for
from v32.kernels.swiglu.triton import swiglu
from v32.kernels.triton_support.gpu import Gpu, gpu_of

if TYPE_CHECKING:
    from v32.kernels.moe_experts import ExpertWeights


class Tiles(NamedTuple):
    """Which rows of the sorted pairs each program multiplies, and by which expert."""

    pairs: Tensor  # int64 [T * K], sorted by expert
    expert: Tensor  # int32 [num_tiles]; E where there is no tile
    start: Tensor  # int32 [num_tiles], first row in `pairs`
    end: Tensor  # int32 [num_tiles], behind the last


def sort_tiles(indices: Tensor, num_experts: int, tokens: int) -> Tiles:
    flat = indices.flatten()
    expert_of_row, pairs = flat.sort(stable=True)
    borders = torch.searchsorted(expert_of_row, torch.arange(num_experts + 1, device=flat.device))
    tiles_before = torch.cumsum((borders.diff() + tokens - 1) // tokens, 0)
    tile = torch.arange(min(flat.numel(), triton.cdiv(flat.numel(), tokens) + num_experts), device=flat.device)
    expert = torch.searchsorted(tiles_before, tile, right=True)
    known = expert.clamp_max(num_experts - 1)
    first_tile = torch.where(known > 0, tiles_before[(known - 1).clamp_min(0)], 0)
    start = borders[known] + (tile - first_tile) * tokens
    end = torch.minimum(borders[known + 1], start + tokens)
    return Tiles(pairs, expert.int(), start.int(), end.int())


def moe_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    experts: Sequence[ExpertWeights],
    act_scale_fmt: str | None,
    gpu: Gpu | None = None,
) -> Tensor:
    gpu = gpu or gpu_of(x)
    (num_tokens, top_k), width = indices.shape, x.shape[1]
    has_codes = experts[0].gate_scale is not None
    fmt = act_scale_fmt if has_codes else None
    tile = tile_for(gpu, triton.cdiv(num_tokens * top_k, len(experts)), fmt is not None)
    tiles = sort_tiles(indices, len(experts), tile.tokens)
    gate, up = (
        _grouped(gpu, x, top_k, experts, name, tiles, fmt, gathers=True, scatters=False) for name in ("gate", "up")
    )
    out = _grouped(gpu, swiglu(gate, up, gpu), 1, experts, "down", tiles, fmt, gathers=False, scatters=True)
    y = torch.empty(num_tokens, width, dtype=torch.float32, device=x.device)
    columns = min(triton.next_power_of_2(width), 1024)
    gpu.launch(
        _weighted_sum,
        (num_tokens, triton.cdiv(width, columns)),
        *(out, weights.contiguous(), y, width),
        TOP_K=top_k,
        COLUMNS=columns,
        num_warps=4,
        num_stages=1,
    )
    return y


def _grouped(
    gpu: Gpu,
    x: Tensor,
    rows_a_token: int,
    experts: Sequence[ExpertWeights],
    name: str,
    tiles: Tiles,
    fmt: str | None,
    *,
    gathers: bool,
    scatters: bool,
) -> Tensor:
    """One projection of every pair, [T * K, N]; input rows by token or sorted, output rows sorted or by pair."""
    weights: list[Tensor] = [getattr(expert, name) for expert in experts]
    scales: list[Tensor | None] = [getattr(expert, f"{name}_scale") for expert in experts]
    num_rows, width = weights[0].shape
    num_pairs = len(tiles.pairs)
    y = torch.empty(num_pairs, num_rows, dtype=x.dtype, device=x.device)
    operand, x_scales = quantized(x, fmt, gpu)
    tile = tile_for(gpu, triton.cdiv(num_pairs, len(experts)), fmt is not None)
    has_codes = scales[0] is not None
    if not has_codes and weights[0].dtype != x.dtype:
        raise ValueError(f"experts in {weights[0].dtype} need tokens in the same dtype, got {x.dtype}")
    weight_table = _addresses(weights, x.device)
    gpu.launch(
        _grouped_gemm,
        (triton.cdiv(num_rows, tile.rows), len(tiles.expert)),
        *(operand, x_scales, weight_table, _addresses(scales, x.device) if has_codes else weight_table),
        *(y, tiles.pairs, tiles.expert, tiles.start, tiles.end),
        *(len(experts), num_rows, width, operand.stride(0), rows_a_token),
        TOKENS=tile.tokens,
        ROWS=tile.rows,
        SWAPPED=tile.is_swapped,
        X_CODES=fmt is not None,
        W_CODES=has_codes,
        NATIVE=gpu.has_fp8,
        EVEN_K=width % BLOCK == 0,
        GATHERS=gathers,
        SCATTERS=scatters,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return y


_TABLES: MutableMapping[Tensor, tuple[list[int], Tensor]] = WeakTensorKeyDictionary()
"""The last table that began with a tensor, which it lives as long as: a CUDA graph may hold its address."""


def _addresses(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
    addresses = []
    for tensor in tensors:
        assert tensor is not None
        if not tensor.is_contiguous():
            raise ValueError(f"expert weights must be contiguous, got strides {tensor.stride()}")
        addresses.append(0 if tensor.is_meta else tensor.data_ptr())
    assert tensors[0] is not None
    known = _TABLES.get(tensors[0])
    if known is None or known[0] != addresses:
        known = _TABLES[tensors[0]] = addresses, torch.tensor(addresses, dtype=torch.int64, device=device)
    return known[1]


@triton.jit
def _grouped_gemm(
    x_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_table_ptr: tl.tensor,
    scale_table_ptr: tl.tensor,
    y_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    expert_ptr: tl.tensor,
    start_ptr: tl.tensor,
    end_ptr: tl.tensor,
    num_experts: tl.tensor,
    num_rows: tl.tensor,
    width: tl.tensor,
    x_stride: tl.tensor,
    rows_a_token: tl.tensor,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    SWAPPED: tl.constexpr,
    X_CODES: tl.constexpr,
    W_CODES: tl.constexpr,
    NATIVE: tl.constexpr,
    EVEN_K: tl.constexpr,
    GATHERS: tl.constexpr,
    SCATTERS: tl.constexpr,
) -> None:
    tile = tl.program_id(1)
    expert = tl.load(expert_ptr + tile)
    if expert < num_experts:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        sorted_row = (tl.load(start_ptr + tile) + tl.arange(0, TOKENS)).to(tl.int64)
        is_pair = sorted_row < tl.load(end_ptr + tile)
        pair = tl.load(pairs_ptr + sorted_row, mask=is_pair, other=0)
        if GATHERS:
            x_row = pair // rows_a_token
        else:
            x_row = sorted_row
        address = tl.multiple_of(tl.load(weight_table_ptr + expert), 16)
        if W_CODES:
            weight_ptr = address.to(tl.pointer_type(tl.uint8))
        else:
            weight_ptr = address.to(tl.pointer_type(x_ptr.dtype.element_ty))
        scale_ptr = tl.load(scale_table_ptr + expert).to(tl.pointer_type(tl.float32))
        num_blocks = tl.cdiv(width, 128)
        acc = scaled_product(
            x_ptr + x_row * x_stride,
            x_scale_ptr + x_row * num_blocks,
            is_pair,
            weight_ptr + row.to(tl.int64) * width,
            scale_ptr + (tl.program_id(0) * ROWS // 128) * num_blocks,
            row < num_rows,
            width,
            TOKENS,
            ROWS,
            SWAPPED,
            X_CODES,
            W_CODES,
            NATIVE,
            EVEN_K,
        )
        if SWAPPED:
            acc = tl.trans(acc)
        if SCATTERS:
            y_row = pair
        else:
            y_row = sorted_row
        inside = is_pair[:, None] & (row < num_rows)[None, :]
        tl.store(y_ptr + y_row[:, None] * num_rows + row[None, :], acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _weighted_sum(
    out_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    y_ptr: tl.tensor,
    width: tl.tensor,
    TOP_K: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((COLUMNS,), tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        out = tl.load(out_ptr + pair * width + column, mask=column < width, other=0.0).to(tl.float32)
        acc += out * tl.load(weights_ptr + pair).to(tl.float32)
    tl.store(y_ptr + token * width + column, acc, mask=column < width)
