"""Native products: equal to the dequantised reference, rows independent of one another, weights of any kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from v32.kernels.fp8_gemm import dequantize, fp8_gemm
from v32.kernels.fp8_gemm.cpu import linear

SIZES = [(1, 1), (5, 31), (128, 32), (130, 129), (257, 384), (96, 1023), (300, 1600)]
"""(rows, columns) with whole and ragged blocks, groups and panels."""


def weight_of(rows: int, cols: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    values = torch.randn(rows, cols, generator=generator)
    if dtype != torch.float8_e4m3fn:
        return values.to(dtype), None
    scale = torch.rand(-(-rows // 128), -(-cols // 128), generator=generator) + 0.01
    return (values * 60).to(dtype), scale


def exact(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    values = weight.double() if scale is None else dequantize(weight, scale).double()
    return x.double() @ values.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_the_product_is_that_of_the_dequantised_weight(
    rows: int, cols: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    weight, scale = weight_of(rows, cols, dtype, generator)
    for count in (1, 2, 3, 4, 7, 14):
        x = torch.randn(count, cols, generator=generator)
        y = linear(x, weight, scale)
        assert y is not None
        bound = 2e-6 * exact(x.abs(), weight.float().abs().to(dtype), scale)
        assert ((y - exact(x, weight, scale)).abs() <= bound + 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype, generator: torch.Generator) -> None:
    weight, scale = weight_of(157, 700, dtype, generator)
    x = torch.randn(29, 700, generator=generator)
    whole = linear(x, weight, scale)
    assert whole is not None
    for count in (1, 2, 3, 5, 6, 11):
        part = linear(x[7 : 7 + count], weight, scale)
        assert part is not None
        assert torch.equal(part, whole[7 : 7 + count])


def test_tiny_and_huge_inputs_keep_their_precision(generator: torch.Generator) -> None:
    weight, scale = weight_of(130, 256, torch.float8_e4m3fn, generator)
    x = torch.randn(2, 256, generator=generator)
    plain = linear(x, weight, scale)
    assert plain is not None
    for factor in (2.0**-60, 2.0**50):
        scaled = linear(x * factor, weight, scale)
        assert scaled is not None
        assert torch.equal(scaled, plain * factor)


def test_every_code_of_e4m3_has_its_value() -> None:
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    weight = codes.view(torch.float8_e4m3fn)[:, None].expand(-1, 2).contiguous()
    y = linear(torch.tensor([[1.0, 0.0]]), weight, torch.ones(2, 1))
    assert y is not None
    assert torch.equal(y[0], codes.view(torch.float8_e4m3fn).float())


def test_the_operation_uses_it_and_gradients_do_not(generator: torch.Generator) -> None:
    weight, scale = weight_of(40, 70, torch.float8_e4m3fn, generator)
    assert scale is not None
    x = torch.randn(2, 3, 70, generator=generator)
    assert torch.equal(fp8_gemm(x, weight, scale), linear(x, weight, scale))
    x.requires_grad_()
    assert linear(x, weight, scale) is None
    fp8_gemm(x, weight, scale).sum().backward()
    assert x.grad is not None
