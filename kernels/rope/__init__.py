"""Rotary position embedding in both layouts of the model."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.rope import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate pairs of the last dimension R by the angles of `cos`, `sin` [T, R/2]; x is [T, R] or [T, H, R].

    interleaved: pairs (2i, 2i+1), as multi-head latent attention uses them; otherwise pairs (i, i + R/2), as the
    lightning indexer does since the fix of 2025-11-17. Computed in float32, returned in the dtype of x.
    """
    if x.shape[-1] != 2 * cos.shape[-1]:
        raise ValueError(f"rope over {x.shape[-1]} dimensions needs {x.shape[-1] // 2} angles, got {cos.shape[-1]}")
    if runs_on_gpu(x):
        from v32.kernels.rope import triton

        return triton.rope(x, cos, sin, interleaved)
    return reference.rope(x, cos, sin, interleaved)
