"""Appending to the cache on a GPU: one program a token, quantisation included."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.codes import quantize_blocks
from v32.kernels.triton_support.gpu import Gpu, gpu_of


def kv_append(records: Tensor, slot_mapping: Tensor, latent: Tensor, k_pe: Tensor, gpu: Gpu | None = None) -> None:
    gpu = gpu or gpu_of(latent)
    latent, k_pe = (t if t.stride(-1) == 1 else t.contiguous() for t in (latent, k_pe))
    width, rope_width = latent.shape[1], k_pe.shape[1]
    gpu.launch(
        _kv_append,
        (len(slot_mapping),),
        *(records, slot_mapping.contiguous(), latent, k_pe),
        *(width, rope_width, records.stride(0), latent.stride(0), k_pe.stride(0)),
        BLOCKS=triton.next_power_of_2(triton.cdiv(width, 128)),
        ROPE_BLOCK=triton.next_power_of_2(rope_width),
        FP8=records.dtype == torch.uint8,
        num_warps=4,
        num_stages=1,
    )


@triton.jit
def _kv_append(
    records_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    latent_ptr: tl.tensor,
    k_pe_ptr: tl.tensor,
    width: tl.tensor,
    rope_width: tl.tensor,
    record_stride: tl.tensor,
    latent_stride: tl.tensor,
    k_pe_stride: tl.tensor,
    BLOCKS: tl.constexpr,
    ROPE_BLOCK: tl.constexpr,
    FP8: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot >= 0:
        record_ptr = records_ptr + slot * record_stride
        block = tl.arange(0, BLOCKS)
        column = block[:, None] * 128 + tl.arange(0, 128)[None, :]
        rope_column = tl.arange(0, ROPE_BLOCK)
        latent = tl.load(latent_ptr + token * latent_stride + column, mask=column < width, other=0.0).to(tl.float32)
        k_pe = tl.load(k_pe_ptr + token * k_pe_stride + rope_column, mask=rope_column < rope_width, other=0.0)
        if FP8:
            codes, scale = quantize_blocks(latent, True)
            tl.store(record_ptr + column, codes, mask=column < width)
            scales_ptr = (record_ptr + width).to(tl.pointer_type(tl.float32))
            tl.store(scales_ptr + block, scale, mask=block * 128 < width)
            rope_ptr = (record_ptr + width + width // 32).to(tl.pointer_type(tl.bfloat16))
            tl.store(rope_ptr + rope_column, k_pe.to(tl.float32).to(tl.bfloat16), mask=rope_column < rope_width)
        else:
            kind = records_ptr.dtype.element_ty
            tl.store(record_ptr + column, latent.to(kind), mask=column < width)
            rope_ptr = record_ptr + width + rope_column
            tl.store(rope_ptr, k_pe.to(tl.float32).to(kind), mask=rope_column < rope_width)
