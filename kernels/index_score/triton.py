"""Index scores on a GPU. A tile of keys stays in registers while the program walks over its queries; every product
[keys, heads] is rectified, weighed and summed before it leaves, so only the scores themselves are written.

    prefill   keys [S, D] of one sequence, or [B, S, D]
    decode    keys in pages of the cache: key s of row b is record block_table[b, s // PAGE] * PAGE + s % PAGE
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.codes import decode_e4m3
from v32.kernels.triton_support.gpu import Gpu, gpu_of

QUERIES_A_PROGRAM = 32


def index_score(q: Tensor, k: Tensor, weights: Tensor, k_scale: Tensor | None, gpu: Gpu | None = None) -> Tensor:
    *batch, num_queries, heads, width = q.shape
    num_keys = k.shape[-2]
    num_batches = math.prod(batch)
    q = q.reshape(num_batches, num_queries, heads, width)
    k = k.expand(*batch, num_keys, width).reshape(num_batches, num_keys, width)
    weights = weights.reshape(num_batches, num_queries, heads)
    if k_scale is not None:
        k_scale = k_scale.expand(*batch, num_keys).reshape(num_batches, num_keys).contiguous()
    scores = torch.empty(len(q), num_queries, num_keys, dtype=torch.float32, device=q.device)
    _launch(q, k, weights, k_scale, None, None, scores, k.stride(0), k.stride(1), gpu)
    return scores.view(*batch, num_queries, num_keys)


def paged_index_score(
    q: Tensor,
    index_keys: Tensor,
    weights: Tensor,
    block_table: Tensor,
    visible: Tensor,
    page_size: int,
    k_scale: Tensor | None,
    gpu: Gpu | None = None,
) -> Tensor:
    scores = torch.empty(len(q), block_table.shape[1] * page_size, dtype=torch.float32, device=q.device)
    table = block_table.contiguous()
    _launch(
        *(q[:, None], index_keys, weights[:, None], k_scale, table, visible.contiguous(), scores[:, None]),
        *(0, index_keys.stride(0), gpu, page_size),
    )
    return scores


def _launch(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    k_scale: Tensor | None,
    block_table: Tensor | None,
    visible: Tensor | None,
    scores: Tensor,
    batch_stride: int,
    key_stride: int,
    gpu: Gpu | None,
    page_size: int = 1,
) -> None:
    gpu = gpu or gpu_of(q)
    num_batches, num_queries, heads, width = q.shape
    num_keys = scores.shape[-1]
    has_codes = q.dtype == torch.float8_e4m3fn
    if not has_codes:
        q = q.to(torch.promote_types(q.dtype, k.dtype))  # keys of a narrower dtype are widened in registers
    q, weights = q.contiguous(), weights.float().contiguous()
    q, k = (t.view(torch.uint8) if t.dtype == torch.float8_e4m3fn else t for t in (q, k))
    assert k.stride(-1) == 1, "the values of one index key lie side by side"
    keys_block = 32 if gpu.arch == "interpreter" or q.dtype == torch.float32 else 64
    gpu.launch(
        _index_score,
        (triton.cdiv(num_keys, keys_block), triton.cdiv(num_queries, QUERIES_A_PROGRAM), num_batches),
        *(q, k, weights, scores if k_scale is None else k_scale),
        *(scores if block_table is None else block_table, scores if visible is None else visible, scores),
        *(num_queries, num_keys, heads, width, batch_stride, key_stride),
        *(0 if block_table is None else block_table.stride(0),),
        KEYS=keys_block,
        QUERIES=QUERIES_A_PROGRAM,
        HEADS=max(triton.next_power_of_2(heads), 16),
        WIDTH=max(triton.next_power_of_2(width), 16),
        PAGE=page_size,
        PAGED=block_table is not None,
        CODES=has_codes,
        NATIVE=gpu.has_fp8,
        K_SCALED=k_scale is not None,
        EVEN=width in (16, 32, 64, 128) and heads in (16, 32, 64, 128),
        num_warps=4,
        num_stages=2,
    )


@triton.jit
def _index_score(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    block_table_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    scores_ptr: tl.tensor,
    num_queries: tl.tensor,
    num_keys: tl.tensor,
    num_heads: tl.tensor,
    width: tl.tensor,
    batch_stride: tl.tensor,
    key_stride: tl.tensor,
    table_stride: tl.tensor,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    PAGED: tl.constexpr,
    CODES: tl.constexpr,
    NATIVE: tl.constexpr,
    K_SCALED: tl.constexpr,
    EVEN: tl.constexpr,
) -> None:
    batch = tl.program_id(2).to(tl.int64)
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    last = num_keys
    if PAGED:
        last = tl.load(visible_ptr + batch).to(tl.int32)
    if tl.program_id(0) * KEYS < last:
        is_key = key < last
        if PAGED:
            page = tl.load(block_table_ptr + batch * table_stride + key // PAGE, mask=is_key, other=0)
            record = page.to(tl.int64) * PAGE + key % PAGE
            scale_row = record
        else:
            record = key.to(tl.int64)
            scale_row = batch * num_keys + key
        head, column = tl.arange(0, HEADS), tl.arange(0, WIDTH)
        k_inside = is_key[:, None]
        q_inside = (head >= 0)[:, None]
        if not EVEN:
            k_inside = k_inside & (column < width)[None, :]
            q_inside = (head < num_heads)[:, None] & (column < width)[None, :]
        k = tl.load(
            k_ptr + batch * batch_stride + record[:, None] * key_stride + column[None, :], mask=k_inside, other=0
        )
        if not CODES:
            k = k.to(q_ptr.dtype.element_ty)
        factor = tl.full((KEYS,), 1.0, tl.float32)
        if K_SCALED:
            factor = tl.load(k_scale_ptr + scale_row, mask=is_key, other=0.0)
        if CODES:
            if NATIVE:
                k = k.to(tl.float8e4nv, bitcast=True)
            else:
                k = decode_e4m3(k)
                factor *= 65536.0
        first_query = tl.program_id(1) * QUERIES
        for query in range(first_query, tl.minimum(first_query + QUERIES, num_queries)):
            row = batch * num_queries + query
            q = tl.load(q_ptr + (row * num_heads + head[:, None]) * width + column[None, :], mask=q_inside, other=0)
            if CODES:
                if NATIVE:
                    q = q.to(tl.float8e4nv, bitcast=True)
                else:
                    q = decode_e4m3(q)
            products = tl.maximum(tl.dot(k, tl.trans(q), input_precision="ieee"), 0.0)  # [KEYS, HEADS]
            weight = tl.load(weights_ptr + row * num_heads + head, mask=head < num_heads, other=0.0)
            score = tl.sum(products * weight[None, :], 1) * factor
            tl.store(scores_ptr + row * num_keys + key, score, mask=is_key)
