"""`sample` by the C++ kernel; probabilities are float32, their sums float64."""

from __future__ import annotations

from ctypes import c_int64

import torch
from torch import Tensor

from v32.kernels.native.library import is_native, library, pointer


def sample(
    logits: Tensor, temperature: Tensor, top_p: Tensor, uniforms: Tensor, bitmask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Ids and log-probabilities, or None where the kernel does not apply: other dtypes, another device, no library."""
    loaded = library() if logits.dtype == temperature.dtype == top_p.dtype == torch.float32 else None
    if loaded is None or uniforms.dtype != torch.float64 or not is_native(logits):
        return None
    rows, vocab = logits.shape
    ids, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    tensors = [tensor.contiguous() for tensor in (logits, temperature, top_p, uniforms)]
    first, *others = map(pointer, tensors)
    mask = None if bitmask is None else pointer(bitmask)
    loaded.v32_sample(first, c_int64(rows), c_int64(vocab), *others, mask, pointer(ids), pointer(logprobs))
    return ids, logprobs
