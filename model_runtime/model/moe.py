"""Feed-forward blocks: the dense one, and the mixture of experts with a shared expert."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from v32.kernels.float_gemm import float_gemm
from v32.kernels.fp8_gemm import ActScaleFormat
from v32.kernels.moe_experts import ExpertWeights, moe_experts
from v32.kernels.moe_route import Routing, moe_route
from v32.kernels.swiglu import swiglu
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.expert_cache import LayerExperts
from v32.model_runtime.model.linear import Linear


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))

    def expert_weights(self) -> ExpertWeights:
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        return ExpertWeights(*(p.weight for p in projections), *(p.weight_scale_inv for p in projections))


class Gate(nn.Module):
    """The router; its weight computes in float32 and its correction bias stays float32."""

    def __init__(self, config: DeepseekV32Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias: Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.config = config

    def forward(self, x: Tensor) -> Routing:
        c = self.config
        return moe_route(
            float_gemm(x, self.weight),
            self.e_score_correction_bias,
            top_k=c.num_experts_per_tok,
            n_group=c.n_group,
            topk_group=c.topk_group,
            norm_topk_prob=c.norm_topk_prob,
            routed_scaling_factor=c.routed_scaling_factor,
        )


class MoE(nn.Module):
    """Routed experts, summed in float32 with the shared expert."""

    def __init__(self, config: DeepseekV32Config) -> None:
        super().__init__()
        size, width = config.hidden_size, config.moe_intermediate_size
        self.gate = Gate(config)
        self.experts = nn.ModuleList(MLP(size, width) for _ in range(config.n_routed_experts))
        self.shared_experts = MLP(size, width * config.n_shared_experts)
        self.cached_experts: LayerExperts | None = None
        """In place of `experts`, which is empty then, where memory does not hold them all."""
        self.last_routing: Tensor | None = None
        """Experts of the last call, int64 [N, K]; training balances their load with it."""

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.gate(x)
        self.last_routing = indices
        return (self.routed(x, indices, weights) + self.shared_experts(x).float()).to(x.dtype)

    def routed(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """The sum over the chosen experts, float32 [N, D]."""
        fmt = self.shared_experts.gate_proj.act_scale_fmt
        if self.cached_experts is not None:
            return _in_waves(self.cached_experts, x, indices, weights, fmt)
        experts = [cast(MLP, expert).expert_weights() for expert in self.experts]
        return moe_experts(x, indices, weights, experts, fmt)


def _in_waves(cached: LayerExperts, x: Tensor, indices: Tensor, weights: Tensor, fmt: ActScaleFormat | None) -> Tensor:
    """As `moe_experts`, of as many experts at a time as there are places for, in ascending order."""
    chosen, numbers = indices.unique(return_inverse=True)
    size, total = cached.num_places, x.new_zeros(x.shape, dtype=torch.float32)
    if len(chosen) <= size:
        return moe_experts(x, numbers, weights, cached.hold(chosen.tolist()), fmt)
    for start in range(0, len(chosen), size):
        rows, places = ((numbers >= start) & (numbers < start + size)).nonzero(as_tuple=True)
        held = cached.hold(chosen[start : start + size].tolist())
        pairs = numbers[rows, places, None] - start, weights[rows, places, None]
        total.index_add_(0, rows, moe_experts(x[rows], *pairs, held, fmt))
    return total
