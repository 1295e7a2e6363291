"""The grammar mask on a GPU: one bit a token, read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.gpu import Gpu, gpu_of

WORDS_A_PROGRAM = 64


def token_mask(logits: Tensor, bitmask: Tensor, gpu: Gpu | None = None) -> Tensor:
    gpu = gpu or gpu_of(logits)
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    masked = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    num_rows, vocab_size = logits.shape
    gpu.launch(
        _token_mask,
        (num_rows, triton.cdiv(bitmask.shape[1], WORDS_A_PROGRAM)),
        *(logits, bitmask.contiguous(), masked, vocab_size, bitmask.shape[1], logits.stride(0)),
        WORDS=WORDS_A_PROGRAM,
        num_warps=4,
        num_stages=1,
    )
    return masked


@triton.jit
def _token_mask(
    logits_ptr: tl.tensor,
    bitmask_ptr: tl.tensor,
    masked_ptr: tl.tensor,
    vocab_size: tl.tensor,
    num_words: tl.tensor,
    stride: tl.tensor,
    WORDS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    token = word[:, None] * 32 + bit[None, :]
    bits = tl.load(bitmask_ptr + row * num_words + word, mask=word < num_words, other=0)
    is_allowed = ((bits[:, None] >> bit[None, :]) & 1) != 0
    logits = tl.load(logits_ptr + row * stride + token, mask=token < vocab_size, other=0.0)
    masked = tl.where(is_allowed, logits.to(tl.float32), float("-inf")).to(masked_ptr.dtype.element_ty)
    tl.store(masked_ptr + row * vocab_size + token, masked, mask=token < vocab_size)
