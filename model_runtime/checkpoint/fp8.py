"""Weights as FP8 codes with one scale for each 128 x 128 block, the form in which V3.2 is published.

    W[i, j] = codes[i, j] * scale[i // 128, j // 128]        codes e4m3, scale float32, a power of two

The stored name `weight_scale_inv` is historic: the scale is multiplied. As powers of two have no mantissa, the
product is exact in bfloat16 as well as in float32, and dequantising (`v32.kernels.fp8_gemm.dequantize`) loses nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

BLOCK = 128
E4M3_MAX = 448.0
# Far below any weight and far above the underflow of float32: an all-zero block gets this scale.
_MIN_SCALE = 2.0**-60
_PIECE = 1 << 18


class BlockQuantized(NamedTuple):
    """A matrix in FP8: `codes` e4m3 [out, in], `scale` float32 [ceil(out/128), ceil(in/128)]."""

    codes: torch.Tensor
    scale: torch.Tensor


def num_blocks(size: int) -> int:
    """How many blocks cover `size` rows or columns; the last may be ragged."""
    return -(-size // BLOCK)


def quantize_blocks(weight: torch.Tensor) -> BlockQuantized:
    """Round a matrix to the nearest FP8 code under the smallest power-of-two scale that avoids saturation."""
    if weight.dim() != 2:
        raise ValueError(f"block quantisation takes a matrix, not a tensor of shape {list(weight.shape)}")
    rows, columns = weight.shape
    padded = weight.new_zeros(num_blocks(rows) * BLOCK, num_blocks(columns) * BLOCK, dtype=torch.float32)
    padded[:rows, :columns] = weight
    blocks = padded.view(num_blocks(rows), BLOCK, num_blocks(columns), BLOCK)  # [R, 128, C, 128]
    scale = _power_of_two_at_least(blocks.abs().amax((1, 3)) / E4M3_MAX)  # [R, C]
    codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return BlockQuantized(codes.view(padded.shape)[:rows, :columns].contiguous(), scale)


def has_nan_codes(codes: torch.Tensor) -> bool:
    """Whether a code is one of e4m3's two NaNs, 0x7F and 0xFF; no sound weight has them."""
    # 0x7F is the largest of signed bytes, 0xFF of unsigned ones; the second look finds a piece in the cache.
    pieces = codes.view(torch.int8).flatten().split(_PIECE)
    return any(int(piece.amax()) == 0x7F or int(piece.view(torch.uint8).amax()) == 0xFF for piece in pieces)


def is_power_of_two(scale: torch.Tensor) -> bool:
    return bool((torch.frexp(scale).mantissa == 0.5).all())


def _power_of_two_at_least(value: torch.Tensor) -> torch.Tensor:
    """2^ceil(log2(value)) from mantissa and exponent: log2 itself rounds, and would be off near powers of two."""
    mantissa, exponent = torch.frexp(value.clamp_min(_MIN_SCALE))
    return torch.ldexp(torch.ones_like(value), exponent - (mantissa == 0.5).to(exponent.dtype))
