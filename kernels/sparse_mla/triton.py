"""Absorbed latent attention on a GPU, over selected slots (sparse) or all visible positions (dense), split along the
keys when there are few queries.

    program    one query token x a block of heads x one split of the keys x one part of the values
    keys       a tile [KEYS, C] of latents is read once and serves scores and values of that part
    splits     each leaves a normalised partial result and the log2 of its mass; a second kernel merges them

The latents may be floats or FP8 records (`kv_append`); codes are decoded in registers, exactly. Which rows are split,
and into how many parts, follows from shapes alone: a query's result does not depend on the other queries' values.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.codes import decode_e4m3
from v32.kernels.triton_support.gpu import Gpu, gpu_of

HEADS_A_PROGRAM = 16
MAX_SPLITS = 16
SPLIT_ROWS = 16
"""Up to so many queries are split. 17 of 128 heads are 136 programs, which fill the machine; and the partial results of
a query, written and read once more, are six times the records that it selects."""


def sparse_mla(
    q_latent: Tensor,
    q_pe: Tensor,
    latent: Tensor,
    k_pe: Tensor,
    indices: Tensor,
    scale: float,
    gpu: Gpu | None = None,
) -> Tensor:
    return attend(q_latent, q_pe, latent, k_pe, indices.contiguous(), indices.shape[1], scale, True, gpu)


def sparse_mla_fp8(
    q_latent: Tensor, q_pe: Tensor, records: Tensor, indices: Tensor, scale: float, gpu: Gpu | None = None
) -> Tensor:
    return attend(q_latent, q_pe, records, records, indices.contiguous(), indices.shape[1], scale, True, gpu)


def attend(
    q_latent: Tensor,
    q_pe: Tensor,
    latent: Tensor,
    k_pe: Tensor,
    select: Tensor,
    num_keys: int,
    scale: float,
    is_sparse: bool,
    gpu: Gpu | None,
) -> Tensor:
    """`select`: slots int [T, K] with -1 unused if `is_sparse`, else the number of visible positions, int [T]."""
    gpu = gpu or gpu_of(q_latent)
    q_latent, q_pe = (t if t.stride(-1) == 1 else t.contiguous() for t in (q_latent, q_pe))
    num_tokens, num_heads, width = q_latent.shape
    is_record = latent.dtype == torch.uint8
    width_block = max(triton.next_power_of_2(width), 16)
    splits = num_splits(num_tokens, num_keys)
    keys_block = 16 if q_latent.dtype == torch.float32 else 32
    # One program takes all values, so that 16 heads read each record once; on AMD the accumulator would be spilled.
    value_block = width_block // 2 if gpu.is_amd and width_block >= 512 else width_block
    out = torch.empty(num_tokens, num_heads, width, dtype=q_latent.dtype, device=q_latent.device)
    partial, mass = out, out
    if splits > 1:
        partial = torch.empty(splits, num_tokens, num_heads, width, dtype=torch.float32, device=out.device)
        mass = torch.empty(splits, num_tokens, num_heads, dtype=torch.float32, device=out.device)
    value_parts = width_block // value_block
    gpu.launch(
        _attend,
        (num_tokens, triton.cdiv(num_heads, HEADS_A_PROGRAM), splits * value_parts),
        *(q_latent, q_pe, latent, k_pe, select, partial, mass, scale * math.log2(math.e)),
        *(num_heads, num_keys, width, q_pe.shape[-1]),
        *(q_latent.stride(0), q_latent.stride(1), q_pe.stride(0), q_pe.stride(1), latent.stride(0), k_pe.stride(0)),
        HEADS=HEADS_A_PROGRAM,
        KEYS=keys_block,
        WIDTH=width_block,
        ROPE=max(triton.next_power_of_2(q_pe.shape[-1]), 16),
        VALUES=value_block,
        SPLITS=splits,
        IS_SPARSE=is_sparse,
        RECORDS=is_record,
        NATIVE=gpu.has_fp8,
        # Every warp holds all queries; decoding needs room beside them.
        num_warps=8 if is_record and not gpu.is_amd else 4,
        num_stages=1 if gpu.is_amd else 2,
    )
    if splits > 1:
        gpu.launch(
            _merge,
            (num_tokens, num_heads),
            *(partial, mass, out, num_tokens, num_heads, width),
            SPLITS=splits,
            WIDTH=width_block,
            num_warps=4,
            num_stages=1,
        )
    return out


def num_splits(num_tokens: int, num_keys: int) -> int:
    """One split for every 128 keys, a power of two, when the queries are few."""
    if num_tokens > SPLIT_ROWS:
        return 1
    return min(triton.next_power_of_2(max(num_keys // 128, 1)), MAX_SPLITS)


@triton.jit
def _latents(
    latent_ptr: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    is_key: tl.tensor,
    KIND: tl.constexpr,
    RECORDS: tl.constexpr,
    NATIVE: tl.constexpr,
) -> tl.tensor:
    """A tile [KEYS, columns] of latents in `KIND`."""
    inside = is_key[:, None] & (column < width)[None, :]
    tile = tl.load(latent_ptr + row[:, None] * stride + column[None, :], mask=inside, other=0)
    if RECORDS:
        NUM_BLOCKS: tl.constexpr = tile.shape[1] // 128
        block = tl.min(column, 0) // 128 + tl.arange(0, NUM_BLOCKS)
        scale_ptr = (latent_ptr + row * stride + width).to(tl.pointer_type(tl.float32))
        known = is_key[:, None] & (block * 128 < width)[None, :]
        scale = tl.load(scale_ptr[:, None] + block[None, :], mask=known, other=0.0)
        if NATIVE:
            values = tile.to(tl.float8e4nv, bitcast=True).to(tl.float32)
        else:
            values = decode_e4m3(tile).to(tl.float32)
            scale *= 256.0
        blocks = tl.reshape(values, (tile.shape[0], NUM_BLOCKS, 128)) * scale[:, :, None]
        tile = tl.reshape(blocks, (tile.shape[0], tile.shape[1])).to(KIND)
    return tile


@triton.jit
def _attend(
    q_ptr: tl.tensor,
    q_pe_ptr: tl.tensor,
    latent_ptr: tl.tensor,
    k_pe_ptr: tl.tensor,
    select_ptr: tl.tensor,
    out_ptr: tl.tensor,
    mass_ptr: tl.tensor,
    scale_log2: tl.tensor,
    num_heads: tl.tensor,
    num_keys: tl.tensor,
    width: tl.tensor,
    rope_width: tl.tensor,
    q_token_stride: tl.tensor,
    q_head_stride: tl.tensor,
    q_pe_token_stride: tl.tensor,
    q_pe_head_stride: tl.tensor,
    latent_stride: tl.tensor,
    k_pe_stride: tl.tensor,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROPE: tl.constexpr,
    VALUES: tl.constexpr,
    SPLITS: tl.constexpr,
    IS_SPARSE: tl.constexpr,
    RECORDS: tl.constexpr,
    NATIVE: tl.constexpr,
) -> None:
    PARTS: tl.constexpr = WIDTH // VALUES
    KIND: tl.constexpr = q_ptr.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    split, part = tl.program_id(2) // PARTS, tl.program_id(2) % PARTS
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column, rope_column = tl.arange(0, WIDTH), tl.arange(0, ROPE)
    value_column = part * VALUES + tl.arange(0, VALUES)
    is_head = head < num_heads
    q_row = q_ptr + token * q_token_stride + head[:, None].to(tl.int64) * q_head_stride
    q_inside = is_head[:, None]
    if not RECORDS:
        q = tl.load(q_row + column[None, :], mask=q_inside & (column < width)[None, :], other=0.0)
    q_pe = tl.load(
        q_pe_ptr + token * q_pe_token_stride + head[:, None].to(tl.int64) * q_pe_head_stride + rope_column[None, :],
        mask=is_head[:, None] & (rope_column < rope_width)[None, :],
        other=0.0,
    )
    last = num_keys
    if not IS_SPARSE:
        last = tl.load(select_ptr + token).to(tl.int32)
    span = tl.cdiv(tl.cdiv(last, SPLITS), KEYS) * KEYS
    best = tl.full((HEADS,), -1e30, tl.float32)
    mass = tl.zeros((HEADS,), tl.float32)
    acc = tl.zeros((HEADS, VALUES), tl.float32)
    for start in range(split * span, tl.minimum((split + 1) * span, last), KEYS):
        key = start + tl.arange(0, KEYS)
        is_key = key < last
        row = key.to(tl.int64)
        if IS_SPARSE:
            row = tl.load(select_ptr + token * num_keys + key, mask=is_key, other=-1).to(tl.int64)
            is_key = row >= 0
            row = tl.where(is_key, row, 0)
        rope_inside = is_key[:, None] & (rope_column < rope_width)[None, :]
        if RECORDS:
            # Block by block, queries included: decoded as a whole, tile and queries would not fit the registers.
            k_pe_rows = (k_pe_ptr + row * k_pe_stride + width + width // 32).to(tl.pointer_type(tl.bfloat16))
            k_pe = tl.load(k_pe_rows[:, None] + rope_column[None, :], mask=rope_inside, other=0.0)
            score = tl.dot(q_pe, tl.trans(k_pe.to(tl.float32).to(KIND)), input_precision="ieee")
            for block in tl.static_range(WIDTH // 128):
                part_column = block * 128 + tl.arange(0, 128)
                q_part = tl.load(
                    q_row + part_column[None, :], mask=q_inside & (part_column < width)[None, :], other=0.0
                )
                keys = _latents(latent_ptr, row, part_column, latent_stride, width, is_key, KIND, RECORDS, NATIVE)
                score = tl.dot(q_part, tl.trans(keys), score, input_precision="ieee")
        else:
            latent = _latents(latent_ptr, row, column, latent_stride, width, is_key, KIND, RECORDS, NATIVE)
            k_pe = tl.load(k_pe_ptr + row[:, None] * k_pe_stride + rope_column[None, :], mask=rope_inside, other=0.0)
            score = tl.dot(q, tl.trans(latent), input_precision="ieee")
            score = tl.dot(q_pe, tl.trans(k_pe), score, input_precision="ieee")
        score = tl.where(is_key[None, :], score * scale_log2, -1e30)
        new_best = tl.maximum(best, tl.max(score, 1))
        decay = tl.exp2(best - new_best)
        p = tl.where(is_key[None, :], tl.exp2(score - new_best[:, None]), 0.0)
        mass = mass * decay + tl.sum(p, 1)
        best = new_best
        if PARTS == 1 and not RECORDS:
            value = latent
        else:
            value = _latents(latent_ptr, row, value_column, latent_stride, width, is_key, KIND, RECORDS, NATIVE)
        acc = tl.dot(p.to(KIND), value, acc * decay[:, None], input_precision="ieee")
    some = tl.where(mass > 0.0, mass, 1.0)
    out_row = (split.to(tl.int64) * tl.num_programs(0) + token) * num_heads + head
    inside = is_head[:, None] & (value_column < width)[None, :]
    out = (acc / some[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_row[:, None] * width + value_column[None, :], out, mask=inside)
    if SPLITS > 1 and part == 0:
        tl.store(mass_ptr + out_row, tl.where(mass > 0.0, best + tl.log2(some), -1e30), mask=is_head)


@triton.jit
def _merge(
    partial_ptr: tl.tensor,
    mass_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_tokens: tl.tensor,
    num_heads: tl.tensor,
    width: tl.tensor,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * num_heads + tl.program_id(1)
    split, column = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    rows = split.to(tl.int64) * num_tokens * num_heads + row
    mass = tl.load(mass_ptr + rows)
    weight = tl.exp2(mass - tl.max(mass, 0))
    weight = weight / tl.sum(weight, 0)
    inside = (split >= 0)[:, None] & (column < width)[None, :]
    partial = tl.load(partial_ptr + rows[:, None] * width + column[None, :], mask=inside, other=0.0)
    out = tl.sum(partial * weight[:, None], 0)
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=column < width)
