"""The row-wise kernels against their references: quantisation bit for bit, the rest within one rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from v32.kernels.act_quant import reference as act_quant_reference
from v32.kernels.hadamard import reference as hadamard_reference
from v32.kernels.rms_norm import reference as rms_norm_reference
from v32.kernels.rope import reference as rope_reference
from v32.kernels.swiglu import reference as swiglu_reference
from v32.kernels.token_mask import bitmask_words
from v32.kernels.token_mask import reference as token_mask_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def one_rounding(dtype: torch.dtype) -> dict[str, float]:
    """Two float32 computations that differ by a few ulps may round to neighbours in `dtype`."""
    return {"rtol": max(torch.finfo(dtype).eps, 2e-6), "atol": 1e-6}


def strided(x: Tensor) -> Tensor:
    """The same values with NaN between the rows, so that reading beyond a row shows."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 64, 128, 200, 1152])
@pytest.mark.parametrize("ue8m0", [True, False])
def test_act_quant_is_the_reference_bit_for_bit(
    device: str, rng: torch.Generator, dtype: torch.dtype, width: int, ue8m0: bool
) -> None:
    from v32.kernels.act_quant import triton as kernel

    x = (torch.randn(5, width, generator=rng) * torch.logspace(-7, 4, 5)[:, None]).to(dtype).to(device)
    codes, scales = kernel.act_quant(strided(x), 128, ue8m0)
    expected_codes, expected_scales = act_quant_reference.act_quant(x, 128, ue8m0)
    assert torch.equal(scales, expected_scales)
    assert same_bits(codes, expected_codes)


def test_act_quant_rounds_every_bfloat16_like_pytorch(device: str) -> None:
    from v32.kernels.act_quant import triton as kernel

    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite() & (every.abs() <= 448)]
    # 448 in each block makes the scale exactly one: what is left is the conversion itself.
    x = torch.cat((every, every.new_zeros(-len(every) % 127))).view(-1, 127)
    x = torch.cat((x, x.new_full((len(x), 1), 448.0)), 1).to(device)
    rows = x.view(1, -1)
    codes, scales = kernel.act_quant(rows, 128, True)
    assert (scales == 1).all()
    assert same_bits(codes, rows.float().to(torch.float8_e4m3fn))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 16, 64, 128])
def test_hadamard_is_the_reference_bit_for_bit(
    device: str, rng: torch.Generator, dtype: torch.dtype, size: int
) -> None:
    from v32.kernels.hadamard import triton as kernel

    x = torch.randn(3, 7, size, generator=rng).to(dtype).to(device)
    assert torch.equal(kernel.hadamard(strided(x)), hadamard_reference.hadamard(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 100, 512])
def test_rms_norm_alone_and_after_a_residual(device: str, rng: torch.Generator, dtype: torch.dtype, width: int) -> None:
    from v32.kernels.rms_norm import triton as kernel

    x, residual = (torch.randn(3, width, generator=rng).to(dtype).to(device) for _ in range(2))
    weight = torch.rand(width, generator=rng).to(dtype).to(device)
    y = kernel.rms_norm(strided(x), weight, 1e-6)
    torch.testing.assert_close(y, rms_norm_reference.rms_norm(x, weight, 1e-6), **one_rounding(dtype))
    y, total = kernel.add_rms_norm(strided(x), strided(residual), weight, 1e-6)
    expected, expected_total = rms_norm_reference.add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(y, expected, **one_rounding(dtype))
    assert torch.equal(total, expected_total)


@pytest.mark.parametrize("width", [100, 384])
def test_the_fused_quantisation_is_the_composition(device: str, rng: torch.Generator, width: int) -> None:
    from v32.kernels.rms_norm import triton as rms_norm
    from v32.kernels.swiglu import triton as swiglu

    x, up = (torch.randn(4, width, generator=rng).bfloat16().to(device) for _ in range(2))
    weight = torch.rand(width, generator=rng).to(device)
    for (codes, scales), plain in (
        (rms_norm.rms_norm_quant(x, weight, 1e-6, True), rms_norm.rms_norm(x, weight, 1e-6)),
        (swiglu.swiglu_quant(x, strided(up), True), swiglu.swiglu(x, up)),
    ):
        expected_codes, expected_scales = act_quant_reference.act_quant(plain, 128, True)
        assert torch.equal(scales, expected_scales)
        assert same_bits(codes, expected_codes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 130, 1100])
def test_swiglu(device: str, rng: torch.Generator, dtype: torch.dtype, width: int) -> None:
    from v32.kernels.swiglu import triton as kernel

    gate, up = (torch.randn(2, 3, width, generator=rng).to(dtype).to(device) * 4 for _ in range(2))
    h = kernel.swiglu(strided(gate), strided(up))
    torch.testing.assert_close(h, swiglu_reference.swiglu(gate, up), **one_rounding(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("shape", [(3, 64), (2, 17, 64), (2, 3, 10), (1, 1, 2)])
def test_rope_in_both_layouts(
    device: str, rng: torch.Generator, dtype: torch.dtype, interleaved: bool, shape: tuple[int, ...]
) -> None:
    from v32.kernels.rope import triton as kernel

    x = torch.randn(*shape, generator=rng).to(dtype).to(device)
    angles = torch.randn(shape[0], shape[-1] // 2, generator=rng).to(device) * 9
    rotated = kernel.rope(strided(x), angles.cos(), angles.sin(), interleaved)
    expected = rope_reference.rope(x, angles.cos(), angles.sin(), interleaved)
    torch.testing.assert_close(rotated, expected, **one_rounding(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 33, 5000])
def test_token_mask(device: str, rng: torch.Generator, dtype: torch.dtype, vocab_size: int) -> None:
    from v32.kernels.token_mask import triton as kernel

    logits = torch.randn(2, vocab_size, generator=rng).to(dtype).to(device)
    words = torch.randint(-(2**31), 2**31, (2, bitmask_words(vocab_size)), generator=rng).int().to(device)
    assert torch.equal(kernel.token_mask(strided(logits), words), token_mask_reference.token_mask(logits, words))
