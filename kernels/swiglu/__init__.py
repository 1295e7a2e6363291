"""The gated activation of every feed-forward block."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.act_quant import act_quant
from v32.kernels.swiglu import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up in float32, rounded once to the dtype of gate; both [..., I]."""
    if runs_on_gpu(gate, up):
        from v32.kernels.swiglu import triton

        return triton.swiglu(gate, up)
    return reference.swiglu(gate, up)


def swiglu_quant(gate: Tensor, up: Tensor, *, ue8m0: bool = True) -> tuple[Tensor, Tensor]:
    """`act_quant(swiglu(gate, up))` in one pass: codes [..., I] and scales [..., ceil(I/128)]."""
    if runs_on_gpu(gate, up):
        from v32.kernels.swiglu import triton

        return triton.swiglu_quant(gate, up, ue8m0)
    return act_quant(reference.swiglu(gate, up), ue8m0=ue8m0)
