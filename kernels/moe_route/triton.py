"""Routing on a GPU: one program a token; groups are rows of a tile, the best are taken one after another."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.gpu import Gpu, gpu_of


def moe_route(
    logits: Tensor,
    correction_bias: Tensor,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm_topk_prob: bool,
    gpu: Gpu | None = None,
) -> tuple[Tensor, Tensor]:
    gpu = gpu or gpu_of(logits)
    logits = logits.float().contiguous()
    num_tokens, num_experts = logits.shape
    weights = torch.empty(num_tokens, top_k, dtype=torch.float32, device=logits.device)
    indices = torch.empty(num_tokens, top_k, dtype=torch.int64, device=logits.device)
    gpu.launch(
        _moe_route,
        (num_tokens,),
        *(logits, correction_bias.float().contiguous(), weights, indices, num_experts // n_group),
        TOP_K=top_k,
        TOP_K_BLOCK=triton.next_power_of_2(top_k),
        N_GROUP=n_group,
        GROUPS=triton.next_power_of_2(n_group),
        TOPK_GROUP=topk_group if n_group > 1 else n_group,
        EXPERTS=triton.next_power_of_2(num_experts // n_group),
        NORM=norm_topk_prob,
        num_warps=1,
        num_stages=1,
    )
    return weights, indices


@triton.jit
def _moe_route(
    logits_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    indices_ptr: tl.tensor,
    group_size: tl.tensor,
    TOP_K: tl.constexpr,
    TOP_K_BLOCK: tl.constexpr,
    N_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    TOPK_GROUP: tl.constexpr,
    EXPERTS: tl.constexpr,
    NORM: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS), tl.arange(0, EXPERTS)
    expert = group[:, None] * group_size + member[None, :]  # rises along rows, then columns: a lower expert comes first
    inside = (group < N_GROUP)[:, None] & (member < group_size)[None, :]
    logits = tl.load(logits_ptr + token * N_GROUP * group_size + expert, mask=inside, other=0.0)
    scores = 1.0 / (1.0 + tl.exp(-logits))
    choice = tl.where(inside, scores + tl.load(bias_ptr + expert, mask=inside, other=0.0), float("-inf"))
    if TOPK_GROUP < N_GROUP:
        best = tl.max(choice, 1)
        first = tl.min(tl.where(choice == best[:, None], member[None, :], EXPERTS), 1)
        second = tl.max(tl.where(member[None, :] == first[:, None], float("-inf"), choice), 1)
        # A group of one expert has no second.
        group_score = tl.where(group < N_GROUP, best + tl.where(group_size > 1, second, 0.0), float("-inf"))
        kept = tl.zeros((GROUPS,), tl.int32)
        for _ in tl.static_range(TOPK_GROUP):
            left = tl.where(kept == 0, group_score, float("-inf"))
            winner = tl.min(tl.where((left == tl.max(left, 0)) & (kept == 0), group, GROUPS), 0)
            kept = tl.where(group == winner, 1, kept)
        choice = tl.where((kept == 1)[:, None], choice, float("-inf"))
    slot = tl.arange(0, TOP_K_BLOCK)
    ids = tl.zeros((TOP_K_BLOCK,), tl.int64)
    weights = tl.zeros((TOP_K_BLOCK,), tl.float32)
    taken = tl.where(inside, 0, 1)
    for k in tl.static_range(TOP_K):
        left = tl.where(taken == 0, choice, float("-inf"))
        best = tl.max(tl.max(left, 1), 0)
        winner = tl.min(tl.min(tl.where((left == best) & (taken == 0), expert, GROUPS * EXPERTS), 1), 0)
        weight = tl.sum(tl.sum(tl.where((expert == winner) & inside, scores, 0.0), 1), 0)
        taken = tl.where(expert == winner, 1, taken)
        ids = tl.where(slot == k, winner.to(tl.int64), ids)
        weights = tl.where(slot == k, weight, weights)
    if NORM:
        weights = weights / (tl.sum(weights, 0) + 1e-20)
    tl.store(weights_ptr + token * TOP_K + slot, weights, mask=slot < TOP_K)
    tl.store(indices_ptr + token * TOP_K + slot, ids, mask=slot < TOP_K)
