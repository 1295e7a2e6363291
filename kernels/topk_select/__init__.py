"""Exact selection of the best-scored positions."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.topk_select import reference


def topk_select(scores: Tensor, k: int, visible: Tensor) -> Tensor:
    """Positions of the min(k, visible[t]) largest scores among positions < visible[t]; of equal scores the lower
    position wins. scores float32 [T, S], visible int [T] -> int64 [T, min(k, S)], best first, unused entries -1.
    NaN counts as lowest.
    """
    return reference.topk_select(scores, k, visible)
