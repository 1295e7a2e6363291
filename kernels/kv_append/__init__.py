"""Store the latents and rotary keys of new tokens in the paged cache, as floats or in the FP8 record.

    float    [latent C | k_pe R]                                      in the dtype of the cache
    FP8      [C codes e4m3 | C/128 scales float32 | R k_pe bfloat16]  bytes; 656 for C = 512, R = 64

The FP8 record is the one that FlashMLA, vLLM and TensorRT-LLM read; its scales are powers of two, as `act_quant` makes
them, so a latent that was rounded by `act_round` comes back exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v32.kernels.kv_append import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu

__all__ = ["kv_append", "read_fp8_records", "record_bytes"]

BLOCK = 128


def record_bytes(kv_lora_rank: int, qk_rope_head_dim: int) -> int:
    """Bytes of one FP8 record."""
    if kv_lora_rank % BLOCK:
        raise ValueError(f"FP8 records need kv_lora_rank in multiples of {BLOCK}, got {kv_lora_rank}")
    return kv_lora_rank + 4 * (kv_lora_rank // BLOCK) + 2 * qk_rope_head_dim


def kv_append(records: Tensor, slot_mapping: Tensor, latent: Tensor, k_pe: Tensor) -> None:
    """records[slot_mapping[t]] = latent [T, C] and k_pe [T, R], in place; a negative slot stores nothing.

    records [slots, C + R] float, or uint8 [slots, record_bytes(C, R)]; slot_mapping int [T], without repetitions.
    """
    width = latent.shape[1] + k_pe.shape[1]
    if records.dtype == torch.uint8:
        width = record_bytes(latent.shape[1], k_pe.shape[1])
    if records.shape[1] != width or len(slot_mapping) != len(latent) or len(latent) != len(k_pe):
        raise ValueError(
            f"records {tuple(records.shape)} of {records.dtype} and {len(slot_mapping)} slots do not take latents "
            f"{tuple(latent.shape)} with keys {tuple(k_pe.shape)}: a record of them has {width} entries"
        )
    if runs_on_gpu(latent, k_pe):
        from v32.kernels.kv_append import triton

        return triton.kv_append(records, slot_mapping, latent, k_pe)
    return reference.kv_append(records, slot_mapping, latent, k_pe)


def read_fp8_records(records: Tensor, kv_lora_rank: int) -> tuple[Tensor, Tensor]:
    """latent float32 [slots, C] and k_pe bfloat16 [slots, R] of uint8 records."""
    return reference.read_fp8_records(records, kv_lora_rank)
