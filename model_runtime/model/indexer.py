"""The lightning indexer: cheap queries and keys that say which positions the attention should read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from v32.kernels.act_quant import act_round
from v32.kernels.float_gemm import float_gemm
from v32.kernels.hadamard import hadamard
from v32.kernels.rope import rope
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.norm import LayerNorm


class Indexer(nn.Module):
    """Report section 2.1. The rotary part comes first in the head and is rotated half-split, not interleaved."""

    def __init__(self, config: DeepseekV32Config) -> None:
        super().__init__()
        self.heads, self.head_dim = config.index_n_heads, config.index_head_dim
        self.rope_dim, self.interleaved = config.qk_rope_head_dim, config.indexer_rope_interleave
        self.rounds_heads = False
        """Pass queries and keys through Hadamard and FP8, as DeepSeek's reference does."""
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.head_dim)
        self.wk = Linear(config.hidden_size, self.head_dim)
        self.k_norm = LayerNorm(self.head_dim)
        self.weights_proj = Linear(config.hidden_size, self.heads)

    def keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Index keys [N, index_head_dim] of x [N, hidden_size]."""
        return self._rotate(self.k_norm(self.wk(x)), cos, sin)

    def queries(self, x: Tensor, q_latent: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Index queries [N, H, D] and head weights float32 [N, H]; q_latent [N, q_lora_rank] is the normed q_a."""
        q = self._rotate(self.wq_b(q_latent).unflatten(-1, (self.heads, self.head_dim)), cos, sin)
        weights = float_gemm(x, self.weights_proj.weight)
        return q, weights * (self.heads**-0.5 * self.head_dim**-0.5)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary, rest = x.split((self.rope_dim, self.head_dim - self.rope_dim), -1)
        x = torch.cat((rope(rotary, cos, sin, interleaved=self.interleaved), rest), -1)
        return act_round(hadamard(x)) if self.rounds_heads else x
