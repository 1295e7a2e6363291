"""Exact top-k on a GPU by radix: four passes of 8 bits find the k-th largest score, a fifth collects the positions.

Scores become integers of the same order (NaN as -inf, -0 as 0), so there is no rounding anywhere; positions that share
the k-th score are taken from the lowest up. A program selects one row and never looks beyond visible[t].
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.gpu import Gpu, gpu_of


def topk_select(scores: Tensor, k: int, visible: Tensor, ordered: bool, gpu: Gpu | None = None) -> Tensor:
    gpu = gpu or gpu_of(scores)
    scores = scores.float()
    scores = scores if scores.stride(-1) == 1 else scores.contiguous()
    num_rows, num_positions = scores.shape
    k = min(k, num_positions)
    positions = torch.empty(num_rows, k, dtype=torch.int64, device=scores.device)
    gpu.launch(
        _topk_select,
        (num_rows,),
        *(scores, visible.contiguous(), positions, num_positions, scores.stride(0), k),
        BLOCK=256 if gpu.arch == "interpreter" else 2048,
        num_warps=8,
        num_stages=2,
    )
    return _best_first(scores, positions) if ordered and k > 0 else positions


def _best_first(scores: Tensor, positions: Tensor) -> Tensor:
    """Positions come in rising order, so a stable sort by score leaves the lower one first among equals."""
    chosen = scores.gather(1, positions.clamp_min(0)).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    by_score = chosen.sort(dim=-1, descending=True, stable=True).indices
    ordered = positions.gather(1, by_score)
    # Unused entries carry the score of position 0; they go last.
    return ordered.gather(1, (ordered < 0).int().sort(dim=-1, stable=True).indices)


@triton.jit
def _sortable(x: tl.tensor) -> tl.tensor:
    """float32 -> uint32 of the same order."""
    x = tl.where(x == x, x, float("-inf"))
    bits = tl.where(x == 0.0, 0.0, x).to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, ~bits, bits | 0x80000000)


@triton.jit
def _topk_select(
    scores_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    num_positions: tl.tensor,
    stride: tl.tensor,
    k: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * stride
    positions_ptr += row * k
    visible = tl.minimum(tl.load(visible_ptr + row).to(tl.int32), num_positions)
    lane, bins = tl.arange(0, BLOCK), tl.arange(0, 256)
    need = tl.minimum(visible, k)
    prefix = tl.full((), 0, tl.uint32)  # digits of the k-th largest found so far
    known = tl.full((), 0, tl.uint32)  # which bits they are
    for digit in tl.static_range(4):
        histogram = tl.zeros((256,), tl.int32)
        for start in range(0, visible, BLOCK):
            inside = start + lane < visible
            key = _sortable(tl.load(scores_ptr + start + lane, mask=inside, other=0.0))
            matches = inside & ((key & known) == prefix)
            histogram += tl.histogram(((key >> (24 - 8 * digit)) & 255).to(tl.int32), 256, mask=matches)
        at_least = tl.cumsum(histogram, 0, reverse=True)  # how many have this digit or a higher one
        chosen = tl.maximum(tl.sum(tl.where(at_least >= need, 1, 0), 0) - 1, 0)
        need -= tl.sum(tl.where(bins == chosen + 1, at_least, 0), 0)
        prefix = prefix | (chosen.to(tl.uint32) << (24 - 8 * digit))
        known = known | (tl.full((), 255, tl.uint32) << (24 - 8 * digit))
    num_taken = tl.full((), 0, tl.int32)
    num_equal = tl.full((), 0, tl.int32)
    for start in range(0, visible, BLOCK):
        inside = start + lane < visible
        key = _sortable(tl.load(scores_ptr + start + lane, mask=inside, other=0.0))
        equal = (inside & (key == prefix)).to(tl.int32)
        takes_equal = (equal != 0) & (num_equal + tl.cumsum(equal, 0) <= need)
        takes = ((inside & (key > prefix)) | takes_equal).to(tl.int32)
        target = num_taken + tl.cumsum(takes, 0) - 1
        tl.store(positions_ptr + target, (start + lane).to(tl.int64), mask=takes != 0)
        num_taken += tl.sum(takes, 0)
        num_equal += tl.sum(equal, 0)
    for start in range(0, k, BLOCK):
        unused = (start + lane >= num_taken) & (start + lane < k)
        tl.store(positions_ptr + start + lane, tl.full((BLOCK,), -1, tl.int64), mask=unused)
