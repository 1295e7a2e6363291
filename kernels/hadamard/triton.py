"""The fast Walsh-Hadamard transform on a GPU: the reference's butterflies in registers, bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.gpu import Gpu, gpu_of

ELEMENTS_A_PROGRAM = 4096


def hadamard(x: Tensor, gpu: Gpu | None = None) -> Tensor:
    gpu = gpu or gpu_of(x)
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    y = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    block = max(ELEMENTS_A_PROGRAM // size, 1)
    gpu.launch(
        _hadamard,
        (triton.cdiv(len(rows), block),),
        *(rows, y, len(rows), rows.stride(0), size**-0.5),
        SIZE=size,
        LOG2_SIZE=size.bit_length() - 1,
        ROWS=block,
        num_warps=4,
        num_stages=1,
    )
    return y.view(x.shape)


@triton.jit
def _hadamard(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_rows: tl.tensor,
    x_stride: tl.tensor,
    factor: tl.tensor,
    SIZE: tl.constexpr,
    LOG2_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, SIZE)
    inside = (row < num_rows)[:, None]
    y = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    for bit in tl.static_range(LOG2_SIZE):
        pairs = tl.reshape(y, (ROWS, SIZE >> (bit + 1), 2, 1 << bit))
        a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
        y = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)), (ROWS, SIZE))
    tl.store(y_ptr + row[:, None] * SIZE + column[None, :], (y * factor).to(y_ptr.dtype.element_ty), mask=inside)
