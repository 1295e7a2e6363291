"""Exact selection of the best-scored positions."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.topk_select import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu


def topk_select(scores: Tensor, k: int, visible: Tensor, *, ordered: bool = True) -> Tensor:
    """Positions of the min(k, visible[t]) largest scores among positions < visible[t]; of equal scores the lower
    position wins. scores float32 [T, S], visible int [T] -> int64 [T, min(k, S)], best first, unused entries -1.
    NaN counts as lowest. Scores at and beyond visible[t] are not looked at. Without `ordered` the positions may come
    in any order, which saves a GPU a sort; attention does not mind.
    """
    if runs_on_gpu(scores):
        from v32.kernels.topk_select import triton

        return triton.topk_select(scores, k, visible, ordered)
    return reference.topk_select(scores, k, visible)
