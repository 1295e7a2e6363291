"""Grouped expert products in plain PyTorch: sort the tokens by expert, one product a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from v32.kernels.fp8_gemm.reference import fp8_gemm
from v32.kernels.swiglu.reference import swiglu

if TYPE_CHECKING:
    from v32.kernels.moe_experts import ExpertWeights


def moe_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    experts: Sequence[ExpertWeights],
    act_scale_fmt: str | None = None,
) -> Tensor:
    top_k = indices.shape[1]
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    tokens = order // top_k
    counts = torch.bincount(flat, minlength=len(experts)).tolist()
    groups = x.index_select(0, tokens).split(counts)
    outputs = [_expert(rows, expert, act_scale_fmt) for rows, expert in zip(groups, experts, strict=True) if len(rows)]
    weighted = torch.cat(outputs).float() * weights.flatten()[order, None]
    return x.new_zeros(x.shape, dtype=torch.float32).index_add(0, tokens, weighted)


def _expert(x: Tensor, expert: ExpertWeights, fmt: str | None) -> Tensor:
    hidden = swiglu(_product(x, expert.gate, expert.gate_scale, fmt), _product(x, expert.up, expert.up_scale, fmt))
    return _product(hidden, expert.down, expert.down_scale, fmt)


def _product(x: Tensor, weight: Tensor, scale: Tensor | None, fmt: str | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype)) if scale is None else fp8_gemm(x, weight, scale, fmt)
