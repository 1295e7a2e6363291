"""The orthonormal Hadamard transform that spreads outliers before the indexer quantises."""

from __future__ import annotations

from torch import Tensor

from v32.kernels.hadamard import reference
from v32.kernels.triton_support.dispatch import runs_on_gpu


def hadamard(x: Tensor) -> Tensor:
    """x H_D / sqrt(D) in Sylvester order over the last dimension D (a power of two), in the dtype of x."""
    size = x.shape[-1]
    if size & (size - 1):
        raise ValueError(f"the Hadamard transform needs a power of two, got {size}")
    if runs_on_gpu(x) and size <= 1024:
        from v32.kernels.hadamard import triton

        return triton.hadamard(x)
    return reference.hadamard(x)
