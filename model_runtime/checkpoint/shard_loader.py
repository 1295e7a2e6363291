"""One rank's part of a checkpoint: checked as the whole, of which only its slices are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from v32.kernels.fp8_gemm import dequantize
from v32.model_runtime.checkpoint.index import CheckpointIndex
from v32.model_runtime.checkpoint.loader import default_dtype
from v32.model_runtime.checkpoint.manifest import Manifest
from v32.model_runtime.checkpoint.slots import KEPT_FLOAT32, Slot, check_finite, check_fp8, slots_of
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.parallel import ParallelForCausalLM, Ranks
from v32.model_runtime.model.sharding import BLOCK, Part, Shard, block_span


def load_shard(
    folder: Path,
    ranks: Ranks,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    progress: Callable[[], object] = lambda: None,
) -> ParallelForCausalLM:
    """The part of rank `ranks.shard.rank`, joined to the others; `progress` is called after every tensor."""
    ranks.use(device)
    model = read_shard(CheckpointIndex.from_dir(folder), ranks.shard, device, dtype or default_dtype(device), progress)
    model.join(ranks)
    return model.requires_grad_(False).eval()


def read_shard(
    index: CheckpointIndex,
    shard: Shard,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[], object] = lambda: None,
) -> ParallelForCausalLM:
    """One part, not joined yet. FP8 stays FP8 where the part begins at a block of scales; other FP8 parts become
    `dtype` (exact: scales are powers of two)."""
    config = DeepseekV32Config.from_dir(index.folder)
    shard.check(config)
    if shard.rank == 0:
        Manifest.check(index)
    with torch.device("meta"):
        model = ParallelForCausalLM(config)
    for slot in slots_of(model, index):
        part = shard.part(slot.info.name, slot.info.shape, config)
        if part is not None:
            _fill(slot, part, index, device, dtype)
            progress()
    return model


def _fill(slot: Slot, part: Part, index: CheckpointIndex, device: torch.device, dtype: torch.dtype) -> None:
    if slot.scale is None:
        kept = index.read_part(slot.info.name, *part)
        check_finite(slot.info, kept)
        slot.put(kept.to(device, torch.float32 if KEPT_FLOAT32.search(slot.info.name) else dtype))
        return
    assert part.columns is not None
    spans = part.rows, part.columns
    blocks = [slice(span.start // BLOCK * BLOCK, span.stop) for span in spans]
    codes = index.read_part(slot.info.name, *blocks)
    scales = index.read_part(slot.scale.name, *map(block_span, blocks)).float()
    check_fp8(slot.info, codes, scales)
    if part.is_on_blocks:
        slot.put(codes.to(device))
        slot.put(scales.to(device), is_scale=True)
    else:  # what stands before the part in its first blocks is cut off
        first_row, first_column = (span.start % BLOCK for span in spans)
        weight = dequantize(codes, scales, dtype)[first_row:, first_column:]
        slot.put(weight.to(device, copy=True, memory_format=torch.contiguous_format))
