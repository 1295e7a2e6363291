"""RMS normalisation over the last dimension."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.rms_norm import reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = weight * x / sqrt(mean(x²) + eps), in float32, rounded once to the dtype of x; x [..., D], weight [D]."""
    return reference.rms_norm(x, weight, eps)
