"""FP8 e4m3 codes inside kernels, in integers: exact on every GPU and in the interpreter.

code   s eeee mmm     value = (-1)^s * 2^(e-7) * (1 + m/8); e = 0: m * 2^-9; no infinity, NaN at 0x7F
half   s eeeee mmmmmmmmmm, bias 15: the same bits moved up read as value / 256, subnormal codes included
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decode_e4m3(codes: tl.tensor) -> tl.tensor:
    """uint8 codes -> float16, exactly value / 256."""
    wide = codes.to(tl.uint16)
    return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)


@triton.jit
def encode_e4m3(x: tl.tensor) -> tl.tensor:
    """float32 -> uint8 codes, to nearest even, saturating at ±448."""
    x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Adding 2^23 leaves round(|x| * 512) in the low bits.
    subnormal = (tl.abs(x) * 512.0 + 8388608.0).to(tl.uint32, bitcast=True) & 0xF
    return (sign | tl.where(size < 0x3C800000, subnormal, normal)).to(tl.uint8)


@triton.jit
def quantize_blocks(x: tl.tensor, UE8M0: tl.constexpr) -> tl.tensor:
    """x float32 [G, B] -> codes uint8 [G, B], scales float32 [G]: one scale for each row of the tile."""
    scale = tl.maximum(tl.max(tl.abs(x), 1), 1e-4) * 0.002232142857142857  # 1 / 448
    if UE8M0:
        bits = scale.to(tl.uint32, bitcast=True)
        exponent = (bits >> 23) + tl.where((bits & 0x7FFFFF) != 0, 1, 0).to(tl.uint32)
        scale = (exponent << 23).to(tl.float32, bitcast=True)
        inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
        codes = encode_e4m3(x * inverse[:, None])
    else:
        codes = encode_e4m3(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)))
    return codes, scale
