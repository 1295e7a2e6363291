"""Routing in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def moe_route(
    logits: Tensor, correction_bias: Tensor, top_k: int, n_group: int, topk_group: int, norm_topk_prob: bool
) -> tuple[Tensor, Tensor]:
    scores = logits.float().sigmoid()
    choice = scores.detach() + correction_bias.float()
    if n_group > 1:
        choice = _keep_best_groups(choice, n_group, topk_group)
    indices = choice.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(-1, indices)
    if norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights, indices


def _keep_best_groups(choice: Tensor, n_group: int, topk_group: int) -> Tensor:
    groups = choice.unflatten(-1, (n_group, -1))  # [T, G, E/G]
    group_scores = groups.topk(min(2, groups.shape[-1]), -1).values.sum(-1)
    best = group_scores.sort(dim=-1, descending=True, stable=True).indices[:, :topk_group]
    keep = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(-1, best, True)
    return groups.masked_fill(~keep[..., None], -torch.inf).flatten(-2)
