"""Drawing a token on a GPU without sorting: probabilities become integers, whose sums are exact in any order.

    mass(v)  = round-down(2^40 * exp((logit[v] - max) / temperature)), 64-bit; tokens below 2^-40 of the best have none
    nucleus  the largest score whose tokens, with all better ones, reach top_p of the total mass
    draw     the largest score whose tokens, with all better ones, exceed uniform * mass(nucleus); of equal ones by id

Both are one search over the bits of a score, four at a time, most significant first. The order of additions cannot
change a result, so neither can the batch. Against the reference in float64 a token can differ only where the uniform
number lies within about 1e-6 of the border between two tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.topk_select.triton import _sortable
from v32.kernels.triton_support.gpu import Gpu, gpu_of


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, uniforms: Tensor, gpu: Gpu | None = None) -> Tensor:
    gpu = gpu or gpu_of(logits)
    logits = logits.float()
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    temperature, top_p, uniforms = temperature.float(), top_p.double(), uniforms.double()
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    gpu.launch(
        _sample,
        (len(logits),),
        *(logits, temperature.contiguous(), top_p.contiguous(), uniforms.contiguous()),
        *(ids, logits.shape[1], logits.stride(0)),
        BLOCK=512 if gpu.arch == "interpreter" else 1024,
        num_warps=8,
        num_stages=1,
    )
    return ids


@triton.jit
def _masses(logits: tl.tensor, best: tl.tensor, inverse_temperature: tl.tensor) -> tl.tensor:
    return (tl.exp((logits - best) * inverse_temperature) * 1099511627776.0).to(tl.int64)


@triton.jit
def _search(
    logits_ptr: tl.tensor,
    vocab_size: tl.tensor,
    best: tl.tensor,
    inverse_temperature: tl.tensor,
    goal: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The largest key such that the tokens of it and of larger keys reach `goal`, and the mass of the larger ones."""
    lane, digits = tl.arange(0, BLOCK), tl.arange(0, 16)
    key = tl.full((), 0, tl.uint32)
    above = tl.full((), 0, tl.int64)
    for step in range(8):
        shift = 28 - 4 * step
        candidates = key + (digits.to(tl.uint32) << shift)
        reached = tl.zeros((16,), tl.int64)
        for start in range(0, vocab_size, BLOCK):
            inside = start + lane < vocab_size
            logits = tl.load(logits_ptr + start + lane, mask=inside, other=float("-inf"))
            mass = tl.where(inside, _masses(logits, best, inverse_temperature), 0)
            counts = _sortable(logits)[:, None] >= candidates[None, :]
            reached += tl.sum(tl.where(counts, mass[:, None], 0), 0)
        chosen = tl.maximum(tl.sum(tl.where(reached >= goal, 1, 0), 0) - 1, 0)
        above = tl.where(chosen < 15, tl.sum(tl.where(digits == chosen + 1, reached, 0), 0), above)
        key += chosen.to(tl.uint32) << shift
    return key, above


@triton.jit
def _sample(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    uniforms_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    vocab_size: tl.tensor,
    stride: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    lane = tl.arange(0, BLOCK)
    best = tl.full((), float("-inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        logits = tl.load(logits_ptr + start + lane, mask=start + lane < vocab_size, other=float("-inf"))
        best = tl.maximum(best, tl.max(logits, 0))
    temperature = tl.load(temperature_ptr + row)
    is_greedy = temperature <= 0.0
    inverse_temperature = 1.0 / tl.where(is_greedy, 1.0, temperature)
    goal = tl.full((), 1, tl.int64)
    if not is_greedy:
        total = tl.full((), 0, tl.int64)
        for start in range(0, vocab_size, BLOCK):
            inside = start + lane < vocab_size
            logits = tl.load(logits_ptr + start + lane, mask=inside, other=float("-inf"))
            total += tl.sum(tl.where(inside, _masses(logits, best, inverse_temperature), 0), 0)
        top_p = tl.load(top_p_ptr + row)
        nucleus = total
        if top_p < 1.0:
            wanted = tl.maximum(tl.ceil(top_p * total.to(tl.float64)).to(tl.int64), 1)
            key, above = _search(logits_ptr, vocab_size, best, inverse_temperature, wanted, BLOCK)
            one = _mass_of(logits_ptr, vocab_size, best, inverse_temperature, key, BLOCK)
            nucleus = above + (wanted - above + one - 1) // one * one
        target = tl.load(uniforms_ptr + row) * nucleus.to(tl.float64)
        goal = tl.minimum(tl.floor(target).to(tl.int64) + 1, nucleus)
    key, above = _search(logits_ptr, vocab_size, best, inverse_temperature, goal, BLOCK)
    one = _mass_of(logits_ptr, vocab_size, best, inverse_temperature, key, BLOCK)
    rank = (goal - above - 1) // one  # among the tokens of equal score
    chosen = tl.full((), 0, tl.int32)
    num_equal = tl.full((), 0, tl.int64)
    for start in range(0, vocab_size, BLOCK):
        inside = start + lane < vocab_size
        logits = tl.load(logits_ptr + start + lane, mask=inside, other=float("-inf"))
        equal = (inside & (_sortable(logits) == key)).to(tl.int64)
        is_chosen = (equal != 0) & (num_equal + tl.cumsum(equal, 0) - 1 == rank)
        chosen += tl.sum(tl.where(is_chosen, start + lane, 0), 0)
        num_equal += tl.sum(equal, 0)
    tl.store(ids_ptr + row, chosen.to(tl.int64))


@triton.jit
def _mass_of(
    logits_ptr: tl.tensor,
    vocab_size: tl.tensor,
    best: tl.tensor,
    inverse_temperature: tl.tensor,
    key: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The mass of one token with this key."""
    lane = tl.arange(0, BLOCK)
    mass = tl.full((), 1, tl.int64)
    for start in range(0, vocab_size, BLOCK):
        inside = start + lane < vocab_size
        logits = tl.load(logits_ptr + start + lane, mask=inside, other=float("-inf"))
        is_key = inside & (_sortable(logits) == key)
        mass = tl.maximum(mass, tl.max(tl.where(is_key, _masses(logits, best, inverse_temperature), 0), 0))
    return mass
