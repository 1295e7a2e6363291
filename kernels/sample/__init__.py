"""Draw one token a row: grammar mask, temperature, exact top-p, inverse CDF.

    p      = softmax(mask(logits) / temperature)
    keep   = the smallest set of most probable tokens whose mass reaches top_p; of equal ones the lower id first
    id     = the first kept token, most probable first, at which the running mass exceeds uniform * mass(keep)
    logprob = log_softmax(logits)[id]

`logprob` is the model's own: temperature 1, nothing truncated, nothing masked, so that a trainer that recomputes the
logits of a transcript finds the same number. Temperature 0 takes the largest masked logit, of equal ones the lower id.

    logits       float32 [B, V]
    temperature  float [B]
    top_p        float [B], in (0, 1]
    uniforms     float64 [B], in [0, 1)
    bitmask      int32 [B, ceil(V / 32)] or None, see token_mask

Randomness comes in as numbers, never from a global generator: `counter_uniform(seed, step)` gives the number of a
sequence's step, so a row's token does not depend on its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from v32.kernels.sample import cpu
from v32.kernels.sample.reference import sample as _reference
from v32.kernels.token_mask import check_bitmask, token_mask
from v32.kernels.triton_support.dispatch import runs_on_gpu

__all__ = ["Sampled", "counter_uniform", "sample"]


class Sampled(NamedTuple):
    ids: torch.Tensor  # int64 [B]
    logprobs: torch.Tensor  # float32 [B]


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    uniforms: torch.Tensor,
    bitmask: torch.Tensor | None = None,
) -> Sampled:
    """One token a row and its log-probability under the model's own distribution."""
    batch = logits.shape[0]
    for name, value in (("temperature", temperature), ("top_p", top_p), ("uniforms", uniforms)):
        if tuple(value.shape) != (batch,):
            raise ValueError(f"{name} has shape {tuple(value.shape)}; {batch} rows of logits need ({batch},)")
    if bitmask is not None:
        check_bitmask(logits, bitmask)
    if not runs_on_gpu(logits) and (drawn := cpu.sample(logits, temperature, top_p, uniforms, bitmask)):
        return Sampled(*drawn)
    masked = logits if bitmask is None else token_mask(logits, bitmask)
    if runs_on_gpu(masked):
        from v32.kernels.sample import triton

        ids = triton.sample(masked, temperature, top_p, uniforms)
    else:
        ids = _reference(masked, temperature, top_p, uniforms)
    return Sampled(ids, torch.log_softmax(logits, -1).gather(1, ids[:, None])[:, 0])


def counter_uniform(seed: int, step: int) -> float:
    """The uniform number in [0, 1) of a seed's step: SplitMix64 over the pair, top 53 bits."""
    return (_mix((_mix(seed & _WORD) + step * _GOLDEN) & _WORD) >> 11) * 2.0**-53


_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    z = (z + _GOLDEN) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)
