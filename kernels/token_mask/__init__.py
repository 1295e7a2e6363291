"""Forbid tokens: logits[v] = -inf wherever the grammar's bitmask has a zero bit.

    logits  float [B, V]
    bitmask int32 [B, ceil(V / 32)]; bit v % 32 of word v // 32 is 1 where token v is allowed

Returns new logits of the same shape and dtype. Tokens beyond the bitmask's words cannot exist: the widths must agree.
"""

from __future__ import annotations

import torch

from v32.kernels.token_mask.reference import token_mask as _reference
from v32.kernels.triton_support.dispatch import runs_on_gpu

__all__ = ["bitmask_words", "check_bitmask", "token_mask"]


def bitmask_words(vocab_size: int) -> int:
    """Number of int32 words that hold one bit a token."""
    return (vocab_size + 31) // 32


def token_mask(logits: torch.Tensor, bitmask: torch.Tensor) -> torch.Tensor:
    """The logits with every token that the bitmask forbids at -inf."""
    check_bitmask(logits, bitmask)
    if runs_on_gpu(logits):
        from v32.kernels.token_mask import triton

        return triton.token_mask(logits, bitmask)
    return _reference(logits, bitmask)


def check_bitmask(logits: torch.Tensor, bitmask: torch.Tensor) -> None:
    """Raises ValueError unless there is one bit for each logit."""
    expected = (logits.shape[0], bitmask_words(logits.shape[1]))
    if bitmask.dtype != torch.int32 or tuple(bitmask.shape) != expected:
        raise ValueError(
            f"bitmask is {bitmask.dtype} {tuple(bitmask.shape)}; logits of shape {tuple(logits.shape)} need "
            f"torch.int32 {expected}"
        )
