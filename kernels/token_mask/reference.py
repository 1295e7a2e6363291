"""Plain PyTorch: unpack the words into one boolean a token."""

from __future__ import annotations

import torch


def token_mask(logits: torch.Tensor, bitmask: torch.Tensor) -> torch.Tensor:
    bits = torch.arange(32, dtype=torch.int32, device=bitmask.device)
    allowed = bitmask[:, :, None].bitwise_right_shift(bits).bitwise_and_(1).flatten(1)  # [B, words * 32]
    return logits.masked_fill(allowed[:, : logits.shape[1]] == 0, float("-inf"))
