"""Scores of the lightning indexer: which earlier positions a query should attend to."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.index_score import reference


def index_score(q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """I[t, s] = Σ_h weights[t, h] * relu(q[t, h] · k[s]), float32.

    q [..., T, H, D], k [..., S, D] (one head, shared), weights [..., T, H] with every scale folded in -> [..., T, S].
    """
    return reference.index_score(q, k, weights)
