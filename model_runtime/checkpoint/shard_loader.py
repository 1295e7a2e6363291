"""One rank's part of a checkpoint: checked as the whole, of which only its slices are read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from v32.kernels.fp8_gemm import dequantize
from v32.model_runtime.checkpoint.index import CheckpointIndex
from v32.model_runtime.checkpoint.loader import default_dtype
from v32.model_runtime.checkpoint.manifest import Manifest
from v32.model_runtime.checkpoint.slots import KEPT_FLOAT32, Slot, check_finite, check_fp8, slots_of
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.parallel import ParallelForCausalLM, Ranks
from v32.model_runtime.model.sharding import Part, block_span


def load_shard(
    folder: Path, ranks: Ranks, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> ParallelForCausalLM:
    """The part of rank `ranks.shard.rank`, joined to the others. FP8 stays FP8 where the part begins at a block of
    scales; other FP8 parts become `dtype` (exact: scales are powers of two)."""
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    config = DeepseekV32Config.from_dir(folder)
    ranks.shard.check(config)
    index = CheckpointIndex.from_dir(folder)
    if ranks.shard.rank == 0:
        Manifest.check(folder, index.fingerprint)
    with torch.device("meta"):
        model = ParallelForCausalLM(config)
    for slot in slots_of(model, index):
        part = ranks.shard.part(slot.info.name, slot.info.shape, config)
        if part is not None:
            _fill(slot, part, index, device, dtype)
    model.join(ranks)
    return model.requires_grad_(False).eval()


def _fill(slot: Slot, part: Part, index: CheckpointIndex, device: torch.device, dtype: torch.dtype) -> None:
    tensor = index.read(slot.info.name)
    if slot.scale is None:
        kept = _cut(tensor, part)
        check_finite(slot.info, kept)
        slot.put(kept.to(device, torch.float32 if KEPT_FLOAT32.search(slot.info.name) else dtype, copy=True))
    else:
        scale = index.read(slot.scale.name).float()
        if part.is_on_blocks and part.columns is not None:
            codes = _cut(tensor, part).clone()
            scales = scale[block_span(part.rows), block_span(part.columns)].clone()
            check_fp8(slot.info, codes, scales)
            slot.put(codes.to(device))
            slot.put(scales.to(device), is_scale=True)
        else:
            check_fp8(slot.info, tensor, scale)
            slot.put(_cut(dequantize(tensor, scale, dtype), part).clone().to(device))
    index.release(slot.info.name)


def _cut(tensor: Tensor, part: Part) -> Tensor:
    return (tensor[part.rows] if part.columns is None else tensor[part.rows, part.columns]).contiguous()
