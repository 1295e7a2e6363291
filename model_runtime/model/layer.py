"""One decoder layer: attention, then a feed-forward block, each normed and added to its input."""

from __future__ import annotations

from torch import Tensor, nn

from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.attention import Attention
from v32.model_runtime.model.mla import MLA
from v32.model_runtime.model.moe import MLP, MoE
from v32.model_runtime.model.norm import RMSNorm


class DecoderLayer(nn.Module):
    """The first `first_k_dense_replace` layers are dense, all others mixtures of experts."""

    def __init__(self, config: DeepseekV32Config, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        is_dense = layer_idx < config.first_k_dense_replace
        self.mlp: MLP | MoE = MLP(config.hidden_size, config.intermediate_size) if is_dense else MoE(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attention)
        return x + self.mlp(self.post_attention_layernorm(x))
