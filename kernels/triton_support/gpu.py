"""The GPUs that the kernels are tuned for, and the one way a kernel is launched.

Every Triton function takes a `Gpu`; left out, it is the one its tensors live on. The compile gate passes a `Gpu` whose
`launch` records instead (`v32.kernels.aot`), so what is compiled there is what is launched here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gpu:
    """One architecture: what its instructions can do and what one program, and one multiprocessor, may use."""

    arch: str
    has_fp8: bool
    """Matrix instructions on e4m3; without, codes are decoded to float16 in registers."""
    shared_bytes: int
    """Shared memory that one program may use."""
    sm_shared_bytes: int
    sm_warps: int
    sm_programs: int
    warp_size: int = 32
    has_wgmma: bool = False
    """64 rows a matrix instruction: few tokens must be its columns, not its rows."""

    @property
    def is_amd(self) -> bool:
        return self.arch.startswith("gfx")

    def launch(
        self, kernel: Any, grid: Sequence[int], *args: Any, num_warps: int, num_stages: int, **meta: Any
    ) -> None:
        """Run `kernel` over `grid`; a grid without programs is nothing to do."""
        if min(grid) > 0:
            kernel[tuple(grid)](*args, num_warps=num_warps, num_stages=num_stages, **meta)


_KB = 1024
GPUS = {
    gpu.arch: gpu
    for gpu in (
        Gpu("sm_80", False, 163 * _KB, 164 * _KB, 64, 32),
        Gpu("sm_89", True, 99 * _KB, 100 * _KB, 48, 24),
        Gpu("sm_90", True, 227 * _KB, 228 * _KB, 64, 32, has_wgmma=True),
        Gpu("sm_100", True, 227 * _KB, 228 * _KB, 64, 32, has_wgmma=True),
        Gpu("sm_120", True, 99 * _KB, 100 * _KB, 48, 32),
        # Triton compiles e4m3fn products there to float16 instructions: decoding by hand is the same and cheaper.
        Gpu("gfx942", False, 64 * _KB, 64 * _KB, 32, 32, warp_size=64),
    )
}
"""A100, RTX 4090 and L40, H100 and H200, B200, RTX 5090 and RTX PRO 6000, MI300X."""

INTERPRETER = Gpu("interpreter", True, 1 << 40, 1 << 40, 64, 32)
"""Triton's interpreter on a CPU; tests only."""


def gpu_of(tensor: Tensor) -> Gpu:
    """The GPU on which `tensor` lives; a CPU tensor belongs to the interpreter."""
    if tensor.is_cuda:
        return _gpu(tensor.device.index or 0)
    from v32.kernels.triton_support.interpreter import interpret

    interpret()  # also where TRITON_INTERPRET=1 has chosen it before
    return INTERPRETER


@cache
def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return GPUS["gfx942"]  # the smallest limits of the AMD family; e4m3 codes work everywhere
    known = sorted((int(arch.removeprefix("sm_")), gpu) for arch, gpu in GPUS.items() if arch.startswith("sm_"))
    capability = properties.major * 10 + properties.minor
    fitting = [gpu for number, gpu in known if number <= capability]
    if not fitting:
        raise RuntimeError(
            f"{properties.name} has compute capability {properties.major}.{properties.minor}; the Triton kernels need "
            f"8.0 (A100) or newer: run the model on the CPU"
        )
    if capability in (86, 87):
        return Gpu("sm_80", False, 99 * _KB, 100 * _KB, 48, 16)
    return fitting[-1]
