"""FP8 products, alone and grouped by expert, against float64 on the dequantised operands.

The operands are exact, the sum is float32 over K in tiles of 128 and the result is rounded once: in the 2-norm 0.2 eps
of its dtype (an ulp over the root of 12, for values spread over a binade), up to 0.27 eps where they are few, and 2e-7
from the sum; where a GPU has FP8 instructions, which keep about 14 bits of a tile's sum, up to 1e-3 (not measured).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from v32.kernels.act_quant.reference import act_dequant, act_quant
from v32.kernels.fp8_gemm.reference import dequantize
from v32.kernels.moe_experts import ExpertWeights
from v32.kernels.moe_experts import reference as moe_reference
from v32.kernels.swiglu.reference import swiglu
from v32.kernels.triton_support.gpu import Gpu, gpu_of

BOUND = {torch.float32: 4e-7, torch.bfloat16: 2.5e-3, torch.float16: 3.1e-4}


def gpus(device: str) -> list[Gpu]:
    """The FP8 path where the machine has it, and the decoding path of GPUs without it."""
    gpu = gpu_of(torch.empty(0, device=device))
    return [gpu, replace(gpu, has_fp8=False)] if gpu.has_fp8 else [gpu]


def block_fp8(rows: int, columns: int, rng: torch.Generator, device: str) -> tuple[Tensor, Tensor]:
    weight = torch.randn(rows, columns, generator=rng).to(torch.float8_e4m3fn)
    scale = torch.exp2(torch.randint(-6, 2, (-(-rows // 128), -(-columns // 128)), generator=rng).float())
    return weight.to(device), scale.to(device)


def relative_error(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fmt", [None, "ue8m0", "float32"])
@pytest.mark.parametrize("shape", [(1, 40, 128), (5, 136, 200), (19, 32, 384)])
def test_fp8_gemm(
    device: str, rng: torch.Generator, dtype: torch.dtype, fmt: str | None, shape: tuple[int, int, int]
) -> None:
    from v32.kernels.fp8_gemm import triton as kernel

    tokens, rows, width = shape
    x = torch.randn(tokens, width, generator=rng).to(dtype).to(device)
    weight, scale = block_fp8(rows, width, rng, device)
    operand = x.double() if fmt is None else act_dequant(*act_quant(x, 128, fmt == "ue8m0"), 128).double()
    expected = operand @ dequantize(weight, scale, torch.float64).T
    for gpu in gpus(device):
        y = kernel.fp8_gemm(x, weight, scale, fmt, gpu)
        assert y.dtype == dtype
        is_short = fmt is not None and gpu.has_fp8 and gpu.arch != "interpreter"
        assert relative_error(y, expected) < BOUND[dtype] + 1e-3 * is_short


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(1, 40, 128), (5, 136, 200), (19, 32, 384)])
def test_float_gemm(device: str, rng: torch.Generator, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """Nothing is rounded: products are exact but for float32, and the sum is float32."""
    from v32.kernels.float_gemm import triton as kernel

    tokens, rows, width = shape
    x = torch.randn(tokens, width, generator=rng).to(dtype).to(device)
    weight = torch.randn(rows, width, generator=rng).to(dtype).to(device)
    y = kernel.float_gemm(x, weight)
    assert y.dtype == torch.float32
    assert relative_error(y, x.double() @ weight.double().T) < BOUND[torch.float32]


def test_the_fp8_and_the_decoding_path_agree(device: str, rng: torch.Generator) -> None:
    from v32.kernels.fp8_gemm import triton as kernel

    x = torch.randn(3, 256, generator=rng).to(device)
    weight, scale = block_fp8(64, 256, rng, device)
    results = [kernel.fp8_gemm(x, weight, scale, "ue8m0", gpu) for gpu in gpus(device)]
    for y in results[1:]:
        torch.testing.assert_close(y, results[0], rtol=1e-5, atol=1e-5)


def test_a_row_does_not_see_its_neighbours(device: str, rng: torch.Generator) -> None:
    from v32.kernels.fp8_gemm import triton as kernel

    x = torch.randn(9, 256, generator=rng).bfloat16().to(device)
    weight, scale = block_fp8(64, 256, rng, device)
    together = kernel.fp8_gemm(x, weight, scale, "ue8m0")
    others = x.clone()
    others[1:] = torch.nan
    assert torch.equal(kernel.fp8_gemm(others, weight, scale, "ue8m0")[0], together[0])


def moe_expected(x: Tensor, indices: Tensor, weights: Tensor, experts: list[ExpertWeights], fmt: str | None) -> Tensor:
    """In float64 except where the operation rounds: after each projection, and when it quantises."""

    def project(rows: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        if scale is None:
            return (rows.double() @ weight.double().T).to(x.dtype)
        operand = rows.double() if fmt is None else act_dequant(*act_quant(rows, 128, fmt == "ue8m0"), 128).double()
        return (operand @ dequantize(weight, scale, torch.float64).T).to(x.dtype)

    y = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for token, chosen in enumerate(indices.tolist()):
        for choice, index in enumerate(chosen):
            e, row = experts[index], x[token : token + 1]
            hidden = swiglu(project(row, e.gate, e.gate_scale), project(row, e.up, e.up_scale))
            y[token] += project(hidden, e.down, e.down_scale)[0].double() * weights[token, choice].double()
    return y


@pytest.mark.parametrize("tokens", [1, 6, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "dtype", "fmt"),
    [
        ("fp8", torch.bfloat16, "ue8m0"),
        ("fp8", torch.bfloat16, None),
        ("fp8", torch.float32, "float32"),
        ("float", torch.float32, None),
        ("float", torch.bfloat16, None),
    ],
)
def test_moe_experts(
    device: str, rng: torch.Generator, kind: str, dtype: torch.dtype, fmt: str | None, tokens: int
) -> None:
    from v32.kernels.moe_experts import triton as kernel

    width, inner, num_experts = 72, 40, 5
    experts = []
    for _ in range(num_experts):
        shapes = ((inner, width), (inner, width), (width, inner))
        if kind == "fp8":
            parts = [block_fp8(*shape, rng, device) for shape in shapes]
            experts.append(ExpertWeights(*(p[0] for p in parts), *(p[1] for p in parts)))
        else:
            experts.append(ExpertWeights(*(torch.randn(*s, generator=rng).to(dtype).to(device) for s in shapes)))
    x = torch.randn(tokens, width, generator=rng).to(dtype).to(device)
    # Expert 2 is never chosen, expert 4 always.
    choices = torch.tensor([[4, 0], [1, 4], [4, 3]])
    indices = choices[torch.arange(tokens) % 3].to(device)
    weights = torch.rand(tokens, 2, generator=rng).to(device)
    expected = moe_expected(x, indices, weights, experts, fmt)
    for gpu in gpus(device):
        y = kernel.moe_experts(x, indices, weights, experts, fmt, gpu)
        assert y.dtype == torch.float32
        # The hidden values are rounded after float32 sums whose order may differ. One of 40 that falls to the
        # neighbour changes the result by an ulp over the root of 40: 1.2e-3 in bfloat16, 2e-2 in e4m3.
        assert relative_error(y, expected) < (2e-2 if fmt else 2e-3 if dtype == torch.bfloat16 else 1e-6)
    if kind == "float":
        reference = moe_reference.moe_experts(x, indices, weights, experts, fmt)
        torch.testing.assert_close(y, reference, rtol=2e-2, atol=float(reference.abs().max()) * 1e-2)


def test_the_tiles_cover_every_pair_once(device: str, rng: torch.Generator) -> None:
    from v32.kernels.moe_experts.triton import sort_tiles

    for tokens, experts in ((1, 8), (7, 3), (50, 4)):
        indices = torch.randint(0, experts, (tokens, 2), generator=rng).to(device)
        tiles = sort_tiles(indices, experts, 4)
        seen = []
        for expert, start, end in zip(tiles.expert.tolist(), tiles.start.tolist(), tiles.end.tolist()):
            if expert < experts:
                pairs = tiles.pairs[start:end].tolist()
                assert 0 < len(pairs) <= 4
                assert all(indices.flatten()[pair] == expert for pair in pairs)
                seen += pairs
        assert sorted(seen) == list(range(tokens * 2))
