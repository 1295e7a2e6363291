"""Multi-head latent attention: one compressed latent and one rotary key a token serve all heads."""

from __future__ import annotations

from torch import Tensor, nn

from v32.kernels.act_quant import act_round
from v32.kernels.rope import rope
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.attention import Attention, AttentionInputs
from v32.model_runtime.model.indexer import Indexer
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.norm import RMSNorm


class MLA(nn.Module):
    """Projections of one layer; what the queries see is decided by the `Attention` passed in."""

    def __init__(self, config: DeepseekV32Config, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.scale = config.num_attention_heads, config.softmax_scale
        self.nope_dim, self.rope_dim, self.v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.kv_lora_rank = config.kv_lora_rank
        self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.q_b_proj = Linear(config.q_lora_rank, self.heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = Linear(config.kv_lora_rank, self.heads * (self.nope_dim + self.v_dim))
        self.o_proj = Linear(self.heads * self.v_dim, config.hidden_size)
        self.indexer = Indexer(config)
        self.rounds_latent = False
        """Pass the latent through FP8 and back before it is used or cached, as DeepSeek's reference does."""
        self._absorbed: Tensor | None = None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """x [N, hidden_size] -> [N, hidden_size]; cos, sin [N, rope/2] of the tokens' positions."""
        out = attention(self.layer_idx, self, self.project(x, cos, sin, attention.needs_index_queries))
        return self.o_proj(out.flatten(1))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor, with_index_queries: bool) -> AttentionInputs:
        q_latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(q_latent).unflatten(-1, (self.heads, -1))
        q_nope, q_pe = q.split((self.nope_dim, self.rope_dim), -1)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split((self.kv_lora_rank, self.rope_dim), -1)
        latent = self.kv_a_layernorm(latent)
        index_q, index_weights = self.indexer.queries(x, q_latent, cos, sin) if with_index_queries else (None, None)
        return AttentionInputs(
            q_nope,
            rope(q_pe, cos, sin, interleaved=True),
            act_round(latent) if self.rounds_latent else latent,
            rope(k_pe, cos, sin, interleaved=True),
            index_q,
            self.indexer.keys(x, cos, sin),
            index_weights,
        )

    def expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Keys without position [S, H, nope] and values [S, H, v] of latents [S, C]."""
        k_nope, v = self.kv_b_proj(latent).unflatten(-1, (self.heads, -1)).split((self.nope_dim, self.v_dim), -1)
        return k_nope, v

    @property
    def w_uk(self) -> Tensor:
        """Maps q_nope into the latent space, [H, nope, C]."""
        return self._kv_b()[:, : self.nope_dim]

    @property
    def w_uv(self) -> Tensor:
        """Maps attended latents to values, [H, v, C]."""
        return self._kv_b()[:, self.nope_dim :]

    def _kv_b(self) -> Tensor:
        dtype = self.kv_a_layernorm.weight.dtype
        if self.kv_b_proj.weight.dtype == dtype:
            return self.kv_b_proj.weight.unflatten(0, (self.heads, -1))
        if self._absorbed is None:
            self._absorbed = self.kv_b_proj.float_weight(dtype).unflatten(0, (self.heads, -1))
        return self._absorbed
