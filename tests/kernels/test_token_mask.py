"""token_mask: exactly the forbidden tokens lose their logit."""

from __future__ import annotations

import pytest
import torch

from v32.kernels.token_mask import bitmask_words, token_mask


def pack(allowed: torch.Tensor) -> torch.Tensor:
    """bool [B, V] -> int32 bitmask, one Python integer at a time."""
    rows = []
    for row in allowed.tolist():
        words = [0] * bitmask_words(len(row))
        for token, is_allowed in enumerate(row):
            words[token // 32] |= int(is_allowed) << token % 32
        rows.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 64, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_forbidden_tokens_change(vocab_size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(3, vocab_size, generator=generator).to(dtype)
    allowed = torch.rand(3, vocab_size, generator=generator) < 0.5
    masked = token_mask(logits, pack(allowed))
    assert masked.dtype == dtype
    assert torch.equal(masked, torch.where(allowed, logits, torch.tensor(float("-inf"), dtype=dtype)))


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int32 \(2, 2\)"):
        token_mask(torch.zeros(2, 40), torch.zeros(2, 1, dtype=torch.int32))
