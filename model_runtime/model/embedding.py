"""The token embedding, without values: like every weight of the model it is filled by whoever builds it."""

from __future__ import annotations

import torch
from torch import nn

from v32.model_runtime.config import DeepseekV32Config


def embedding(config: DeepseekV32Config) -> nn.Embedding:
    """[vocab_size, hidden_size]. PyTorch's own random values would cost seconds on the meta device."""
    return nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.hidden_size), freeze=False)
