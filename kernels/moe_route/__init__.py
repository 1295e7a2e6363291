"""The router: sigmoid scores, bias-corrected and group-limited choice of experts (`noaux_tc`)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from v32.kernels.moe_route import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu


class Routing(NamedTuple):
    """Chosen experts of each token, best first."""

    weights: Tensor  # float32 [T, K]
    indices: Tensor  # int64 [T, K]


def moe_route(
    logits: Tensor,
    correction_bias: Tensor,
    *,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> Routing:
    """s = sigmoid(logits [T, E]); experts are chosen by s + bias [E] within the `topk_group` groups whose two best
    experts sum highest; weights are s alone, divided by their sum if `norm_topk_prob`, times the scaling factor.
    All in float32; of equal scores the lower expert wins. Source: DeepSeek-V3 report, section 2.1.2.
    """
    if runs_on_gpu(logits):
        from v32.kernels.moe_route import triton

        weights, indices = triton.moe_route(logits, correction_bias, top_k, n_group, topk_group, norm_topk_prob)
    else:
        weights, indices = reference.moe_route(logits, correction_bias, top_k, n_group, topk_group, norm_topk_prob)
    return Routing(weights * routed_scaling_factor, indices)
