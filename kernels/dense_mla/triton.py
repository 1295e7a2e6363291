"""Latent attention over all visible positions on a GPU: absorbed as `sparse_mla`, or expanded as flash attention."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.sparse_mla.triton import attend
from v32.kernels.triton_support.gpu import Gpu, gpu_of


def dense_mla(
    q_latent: Tensor,
    q_pe: Tensor,
    latent: Tensor,
    k_pe: Tensor,
    visible: Tensor,
    scale: float,
    gpu: Gpu | None = None,
) -> Tensor:
    return attend(q_latent, q_pe, latent, k_pe, visible.contiguous(), len(latent), scale, False, gpu)


def expanded_mla(
    q_nope: Tensor,
    q_pe: Tensor,
    k_nope: Tensor,
    k_pe: Tensor,
    v: Tensor,
    visible: Tensor,
    scale: float,
    indices: Tensor | None,
    gpu: Gpu | None = None,
) -> Tensor:
    gpu = gpu or gpu_of(q_nope)
    q_nope, q_pe, k_nope, k_pe, v = (
        t if t.stride(-1) == 1 else t.contiguous() for t in (q_nope, q_pe, k_nope, k_pe, v)
    )
    (num_queries, num_heads, _), num_keys = q_nope.shape, len(k_nope)
    out = torch.empty(num_queries, num_heads, v.shape[-1], dtype=v.dtype, device=v.device)
    chosen = visible if indices is None else _chosen(indices, num_keys)
    is_small = q_nope.dtype == torch.float32
    queries, keys = (16, 16) if is_small else (64, 32) if gpu.is_amd or gpu.arch == "sm_120" else (64, 64)
    gpu.launch(
        _expanded,
        (triton.cdiv(num_queries, queries), num_heads),
        *(q_nope, q_pe, k_nope, k_pe, v, visible.contiguous(), chosen, out, scale * math.log2(math.e)),
        *(num_queries, num_keys, num_heads, q_nope.shape[-1], q_pe.shape[-1], v.shape[-1]),
        *(q_nope.stride(0), q_nope.stride(1), q_pe.stride(0), q_pe.stride(1)),
        *(k_nope.stride(0), k_nope.stride(1), k_pe.stride(0), v.stride(0), v.stride(1)),
        QUERIES=queries,
        KEYS=keys,
        NOPE=max(triton.next_power_of_2(q_nope.shape[-1]), 16),
        ROPE=max(triton.next_power_of_2(q_pe.shape[-1]), 16),
        VALUES=max(triton.next_power_of_2(v.shape[-1]), 16),
        IS_SPARSE=indices is not None,
        num_warps=4,
        num_stages=1 if gpu.is_amd else 2,
    )
    return out


def _chosen(indices: Tensor, num_keys: int) -> Tensor:
    """uint8 [T, S]: 1 where the position is among the query's indices."""
    chosen = torch.zeros(len(indices), num_keys + 1, dtype=torch.uint8, device=indices.device)
    # Column S collects the unused entries and is cut off again.
    return chosen.scatter_(1, torch.where(indices < 0, num_keys, indices).long(), 1)[:, :-1].contiguous()


@triton.jit
def _expanded(
    q_nope_ptr: tl.tensor,
    q_pe_ptr: tl.tensor,
    k_nope_ptr: tl.tensor,
    k_pe_ptr: tl.tensor,
    v_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    out_ptr: tl.tensor,
    scale_log2: tl.tensor,
    num_queries: tl.tensor,
    num_keys: tl.tensor,
    num_heads: tl.tensor,
    nope_width: tl.tensor,
    rope_width: tl.tensor,
    v_width: tl.tensor,
    q_nope_token_stride: tl.tensor,
    q_nope_head_stride: tl.tensor,
    q_pe_token_stride: tl.tensor,
    q_pe_head_stride: tl.tensor,
    k_nope_token_stride: tl.tensor,
    k_nope_head_stride: tl.tensor,
    k_pe_stride: tl.tensor,
    v_token_stride: tl.tensor,
    v_head_stride: tl.tensor,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    VALUES: tl.constexpr,
    IS_SPARSE: tl.constexpr,
) -> None:
    head = tl.program_id(1).to(tl.int64)
    query = (tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)).to(tl.int64)
    is_query = query < num_queries
    nope, rope, value = tl.arange(0, NOPE), tl.arange(0, ROPE), tl.arange(0, VALUES)
    is_nope, is_rope, is_value = (nope < nope_width)[None, :], (rope < rope_width)[None, :], (value < v_width)[None, :]
    q_nope = tl.load(
        q_nope_ptr + query[:, None] * q_nope_token_stride + head * q_nope_head_stride + nope[None, :],
        mask=is_query[:, None] & is_nope,
        other=0.0,
    )
    q_pe = tl.load(
        q_pe_ptr + query[:, None] * q_pe_token_stride + head * q_pe_head_stride + rope[None, :],
        mask=is_query[:, None] & is_rope,
        other=0.0,
    )
    visible = tl.load(visible_ptr + query, mask=is_query, other=0).to(tl.int32)
    best = tl.full((QUERIES,), -1e30, tl.float32)
    mass = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, VALUES), tl.float32)
    for start in range(0, tl.minimum(tl.max(visible, 0), num_keys), KEYS):
        key = (start + tl.arange(0, KEYS)).to(tl.int64)
        is_key = (key < num_keys)[:, None]
        k_nope = tl.load(
            k_nope_ptr + key[:, None] * k_nope_token_stride + head * k_nope_head_stride + nope[None, :],
            mask=is_key & is_nope,
            other=0.0,
        )
        k_pe = tl.load(k_pe_ptr + key[:, None] * k_pe_stride + rope[None, :], mask=is_key & is_rope, other=0.0)
        score = tl.dot(q_nope, tl.trans(k_nope), input_precision="ieee")
        score = tl.dot(q_pe, tl.trans(k_pe), score, input_precision="ieee")
        is_seen = key[None, :] < visible[:, None]
        if IS_SPARSE:
            chosen = tl.load(
                chosen_ptr + query[:, None] * num_keys + key[None, :],
                mask=is_query[:, None] & (key < num_keys)[None, :],
                other=0,
            )
            is_seen = is_seen & (chosen != 0)
        score = tl.where(is_seen, score * scale_log2, -1e30)
        new_best = tl.maximum(best, tl.max(score, 1))
        decay = tl.exp2(best - new_best)
        p = tl.where(is_seen, tl.exp2(score - new_best[:, None]), 0.0)
        mass = mass * decay + tl.sum(p, 1)
        best = new_best
        v = tl.load(
            v_ptr + key[:, None] * v_token_stride + head * v_head_stride + value[None, :],
            mask=is_key & is_value,
            other=0.0,
        )
        acc = tl.dot(p.to(v_ptr.dtype.element_ty), v, acc * decay[:, None], input_precision="ieee")
    out = (acc / tl.where(mass > 0.0, mass, 1.0)[:, None]).to(out_ptr.dtype.element_ty)
    out_row = query[:, None] * num_heads + head
    tl.store(out_ptr + out_row * v_width + value[None, :], out, mask=is_query[:, None] & is_value)
