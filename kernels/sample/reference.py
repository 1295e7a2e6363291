"""Plain PyTorch, a row at a time, so that no row's rounding depends on its neighbours."""

from __future__ import annotations

import torch

CANDIDATES = 256
"""Tokens sorted first; a nucleus that needs more falls back to the whole vocabulary with the same result."""


def sample(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniforms: torch.Tensor
) -> torch.Tensor:
    ids = logits.argmax(-1)  # the first of equal maxima
    rows = zip(temperature.tolist(), top_p.tolist(), uniforms.tolist(), strict=True)
    for row, (row_temperature, row_top_p, uniform) in enumerate(rows):
        if row_temperature > 0:
            ids[row] = _draw(torch.softmax(logits[row].double() / row_temperature, -1), row_top_p, uniform)
    return ids


def _draw(probs: torch.Tensor, top_p: float, uniform: float) -> torch.Tensor:
    """Inverse CDF over the nucleus, most probable first."""
    ordered, ids = _descending(probs, top_p)
    mass = ordered.cumsum(-1)
    size = int((mass - ordered < top_p).sum())
    target = uniform * mass[size - 1]
    return ids[torch.searchsorted(mass[:size], target, right=True).clamp_max(size - 1)]


def _descending(probs: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities from the largest down, of equal ones the lower id first; at least those that fill top_p."""
    if top_p < 1 and probs.numel() > 4 * CANDIDATES:
        bound = probs.topk(CANDIDATES, sorted=False).values.min()
        candidates = (probs >= bound).nonzero()[:, 0]  # with every token that ties at the bound
        ordered, order = probs[candidates].sort(descending=True, stable=True)
        if ordered.sum() >= top_p + 1e-9:
            return ordered, candidates[order]
    return probs.sort(descending=True, stable=True)
