"""The gated activation of every feed-forward block."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.swiglu import reference


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up in float32, rounded once to the dtype of gate; both [..., I]."""
    return reference.swiglu(gate, up)
