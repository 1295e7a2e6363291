"""Appending to the cache in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from v32.kernels.act_quant.reference import act_dequant, act_quant

BLOCK = 128


def kv_append(records: Tensor, slot_mapping: Tensor, latent: Tensor, k_pe: Tensor) -> None:
    stored = slot_mapping >= 0
    slots, latent, k_pe = slot_mapping[stored].long(), latent[stored], k_pe[stored]
    if records.dtype == torch.uint8:
        codes, scales = act_quant(latent, BLOCK, True)
        parts = (codes, scales, k_pe.to(torch.bfloat16))
        records[slots] = torch.cat([part.contiguous().view(torch.uint8) for part in parts], -1)
    else:
        records[slots] = torch.cat((latent, k_pe), -1).to(records.dtype)


def read_fp8_records(records: Tensor, kv_lora_rank: int) -> tuple[Tensor, Tensor]:
    scale_bytes = 4 * (kv_lora_rank // BLOCK)
    rope_bytes = records.shape[1] - kv_lora_rank - scale_bytes
    codes, scales, k_pe = records.split((kv_lora_rank, scale_bytes, rope_bytes), -1)
    latent = act_dequant(codes.contiguous().view(torch.float8_e4m3fn), scales.contiguous().view(torch.float32), BLOCK)
    return latent, k_pe.contiguous().view(torch.bfloat16)
