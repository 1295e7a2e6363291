"""SwiGLU on a GPU, alone or with the quantisation that the down projection needs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from v32.kernels.triton_support.codes import quantize_blocks
from v32.kernels.triton_support.gpu import Gpu, gpu_of

BLOCK = 128
BLOCKS_A_PROGRAM = 8


def swiglu(gate: Tensor, up: Tensor, gpu: Gpu | None = None) -> Tensor:
    h = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    _launch(gate, up, h, None, False, gpu)
    return h


def swiglu_quant(gate: Tensor, up: Tensor, ue8m0: bool, gpu: Gpu | None = None) -> tuple[Tensor, Tensor]:
    codes = torch.empty(gate.shape, dtype=torch.uint8, device=gate.device)
    num_blocks = triton.cdiv(gate.shape[-1], BLOCK)
    scales = torch.empty(*gate.shape[:-1], num_blocks, dtype=torch.float32, device=gate.device)
    _launch(gate, up, codes, scales, ue8m0, gpu)
    return codes.view(torch.float8_e4m3fn), scales


def _launch(gate: Tensor, up: Tensor, out: Tensor, scales: Tensor | None, ue8m0: bool, gpu: Gpu | None) -> None:
    gpu = gpu or gpu_of(gate)
    width = gate.shape[-1]
    gates, ups = (t.reshape(-1, width) for t in (gate, up))
    gates, ups = (t if t.stride(-1) == 1 else t.contiguous() for t in (gates, ups))
    num_blocks = triton.cdiv(width, BLOCK)
    gpu.launch(
        _swiglu,
        (len(gates), triton.cdiv(num_blocks, BLOCKS_A_PROGRAM)),
        *(gates, ups, out, out if scales is None else scales, width, num_blocks, gates.stride(0), ups.stride(0)),
        BLOCK=BLOCK,
        BLOCKS=BLOCKS_A_PROGRAM,
        QUANT=scales is not None,
        UE8M0=ue8m0,
        num_warps=4,
        num_stages=1,
    )


@triton.jit
def _swiglu(
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    out_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    width: tl.tensor,
    num_blocks: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    QUANT: tl.constexpr,
    UE8M0: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = column < width
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    h = (gate / (1.0 + tl.exp(-gate)) * up).to(gate_ptr.dtype.element_ty)
    if QUANT:
        codes, scale = quantize_blocks(h.to(tl.float32), UE8M0)
        tl.store(out_ptr + row * width + column, codes, mask=inside)
        tl.store(scales_ptr + row * num_blocks + block, scale, mask=block < num_blocks)
    else:
        tl.store(out_ptr + row * width + column, h, mask=inside)
