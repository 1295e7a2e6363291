"""The multi-token prediction module: one more layer that drafts the token after the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.attention import Attention
from v32.model_runtime.model.embedding import embedding
from v32.model_runtime.model.layer import DecoderLayer
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.norm import RMSNorm


class SharedHead(nn.Module):
    """Norm and output head of a draft; the head is a copy of the model's in the published checkpoints."""

    def __init__(self, config: DeepseekV32Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size)


class MTPLayer(DecoderLayer):
    """DeepSeek-V3 report section 2.2; stands at index num_hidden_layers of `model.layers`."""

    def __init__(self, config: DeepseekV32Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        size = config.hidden_size
        self.embed_tokens = embedding(config)
        self.enorm = RMSNorm(size, config.rms_norm_eps)
        self.hnorm = RMSNorm(size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * size, size)
        self.shared_head = SharedHead(config)

    def draft(
        self, hidden: Tensor, next_ids: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, attention: Attention
    ) -> tuple[Tensor, Tensor]:
        """hidden [N, D] of positions i (after model.norm), next_ids [N] the tokens at i + 1 -> (post-norm hidden
        [N, D] for a chained draft, float32 logits [N, vocab] of the tokens at i + 2)."""
        out = self.extend(self.join(hidden, next_ids, positions), cos, sin, attention)
        return out, self.shared_head.head(out).float()

    def join(self, hidden: Tensor, next_ids: Tensor, positions: Tensor) -> Tensor:
        """The layer's input rows."""
        embedded = self.embed_tokens(next_ids).to(hidden.dtype) * (positions > 0)[:, None]
        joined: Tensor = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), -1))
        return joined

    def extend(self, joined: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """`draft` without its logits: `shared_head.head` gives those of the rows that are wanted."""
        normed: Tensor = self.shared_head.norm(self(joined, cos, sin, attention))
        return normed
