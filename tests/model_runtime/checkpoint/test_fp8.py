"""FP8 blocks: the scale is the smallest power of two that fits, codes are the nearest ones."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from v32.kernels.fp8_gemm import dequantize
from v32.model_runtime.checkpoint.fp8 import has_nan_codes, is_power_of_two, quantize_blocks


def e4m3_values() -> np.ndarray:
    """All finite magnitudes of e4m3, from its definition: 4 bits of exponent with bias 7, 3 of mantissa."""
    small = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    normal = [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)]
    return np.array(small + normal[:-1])  # the largest pattern is NaN


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 127), (64, 300), (257, 3)])
def test_every_value_is_the_nearest_code_under_its_block_scale(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 3, shape[1])
    codes, scale = quantize_blocks(weight)
    assert codes.dtype == torch.float8_e4m3fn
    assert scale.shape == (math.ceil(shape[0] / 128), math.ceil(shape[1] / 128))
    assert is_power_of_two(scale)
    grid = np.concatenate((-e4m3_values()[::-1], e4m3_values()))
    spread = scale.numpy().repeat(128, 0)[: shape[0]].repeat(128, 1)[:, : shape[1]].astype(np.float64)
    exact = weight.numpy().astype(np.float64) / spread
    got = codes.float().numpy().astype(np.float64)
    nearest = np.abs(exact[..., None] - grid).min(-1)
    np.testing.assert_array_equal(np.abs(exact - got), nearest)
    np.testing.assert_array_equal(dequantize(codes, scale).numpy(), (got * spread).astype(np.float32))


@given(st.floats(2.0**-40, 2.0**40, width=32))
def test_the_scale_is_the_smallest_power_of_two_without_saturation(largest: float) -> None:
    scale = float(quantize_blocks(torch.tensor([[largest]])).scale)
    assert largest / scale <= 448 * (1 + 2**-23)
    assert largest / (scale / 2) > 448


def test_blocks_do_not_influence_one_another() -> None:
    weight = torch.randn(256, 384)
    codes, scale = quantize_blocks(weight)
    part = quantize_blocks(weight[128:, 128:256])
    assert torch.equal(codes[128:, 128:256].float(), part.codes.float())
    assert torch.equal(scale[1:, 1:2], part.scale)


def test_an_all_zero_block_stays_zero_with_a_sound_scale() -> None:
    codes, scale = quantize_blocks(torch.zeros(3, 5))
    assert float(scale) > 0
    assert not codes.float().any()


def test_dequantised_weights_are_exact_in_bfloat16_and_quantise_to_themselves() -> None:
    first = quantize_blocks(torch.randn(200, 200))
    weight = dequantize(*first)
    assert torch.equal(weight, dequantize(*first, torch.bfloat16).float())
    assert torch.equal(dequantize(*quantize_blocks(weight)), weight)


def test_nan_codes_are_seen() -> None:
    codes, _ = quantize_blocks(torch.randn(4, 4))
    assert not has_nan_codes(codes)
    for code in (0x7F, 0xFF):
        damaged = codes.clone()
        damaged.view(torch.uint8)[2, 3] = code
        assert has_nan_codes(damaged)


def test_only_matrices_are_quantised() -> None:
    with pytest.raises(ValueError, match=r"not a tensor of shape \[3\]"):
        quantize_blocks(torch.ones(3))
