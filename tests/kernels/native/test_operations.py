"""The other native operations against their references: exact where the reference is exact, else within rounding."""

from __future__ import annotations

from ctypes import c_float, c_int64

import pytest
import torch
from torch import Tensor

from v32.kernels.index_score import reference as index_score
from v32.kernels.moe_experts import ExpertWeights
from v32.kernels.moe_experts import reference as experts_reference
from v32.kernels.moe_experts.cpu import moe_experts
from v32.kernels.moe_route.reference import moe_route
from v32.kernels.native import library, pointer
from v32.kernels.rms_norm import reference as rms_norm
from v32.kernels.rope import reference as rope
from v32.kernels.sparse_mla.reference import sparse_mla
from v32.kernels.swiglu import reference as swiglu
from v32.kernels.topk_select import reference as topk_select


def call(name: str, *arguments: Tensor | int | float) -> None:
    loaded = library()
    assert loaded is not None
    kinds = {int: c_int64, float: c_float}
    getattr(loaded, name)(*(pointer(a) if isinstance(a, Tensor) else kinds[type(a)](a) for a in arguments))


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "width"),
    [(1, 1, 1, 8), (3, 63, 5, 10), (2, 200, 8, 64), (2, 33, 3, 128), (1, 70, 4, 96)],
)
def test_index_score(queries: int, keys: int, heads: int, width: int, generator: torch.Generator) -> None:
    q = torch.randn(queries, heads, width, generator=generator)
    k, w = torch.randn(keys, width, generator=generator), torch.randn(queries, heads, generator=generator)
    scores = torch.full((queries, keys), torch.nan)
    call("v32_index_score", q, k, w, queries, keys, heads, width, scores)
    expected = index_score.index_score(q, k, w)
    assert (scores - expected).abs().max() <= 1e-5 * expected.abs().max() + 1e-6


@pytest.mark.parametrize(("experts", "groups", "chosen_groups", "k"), [(8, 1, 1, 3), (24, 4, 2, 5), (6, 6, 2, 2)])
def test_moe_route(experts: int, groups: int, chosen_groups: int, k: int, generator: torch.Generator) -> None:
    logits, bias = torch.randn(7, experts, generator=generator), torch.randn(experts, generator=generator) / 4
    indices, weights = torch.full((7, k), -7), torch.full((7, k), torch.nan)
    call("v32_moe_route", logits, bias, 7, experts, k, groups, chosen_groups, indices, weights)
    expected_weights, expected = moe_route(logits, bias, k, groups, chosen_groups, True)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize(("queries", "heads", "count", "latent", "rope_width"), [(1, 1, 1, 8, 8), (3, 5, 63, 24, 8)])
def test_sparse_mla(
    queries: int, heads: int, count: int, latent: int, rope_width: int, generator: torch.Generator
) -> None:
    width = latent + rope_width
    q, records = (torch.randn(*shape, width, generator=generator) for shape in ((queries, heads), (90,)))
    slots = torch.rand(queries, 90, generator=generator).topk(count).indices
    out = torch.full((queries, heads, latent), torch.nan)
    call("v32_sparse_mla", q, records, slots, queries, heads, count, latent, width, 0.3, out)
    sizes = (latent, rope_width)
    torch.testing.assert_close(out, sparse_mla(*q.split(sizes, -1), *records.split(sizes, -1), slots, 0.3))


@pytest.mark.parametrize("k", [1, 7, 100])
def test_topk_select_is_exact_with_ties_zeros_infinities_and_nan(k: int, generator: torch.Generator) -> None:
    scores = torch.randint(-3, 4, (6, 150), generator=generator).float()
    scores[0] = torch.randn(150, generator=generator)
    scores[1, ::3], scores[2, 5], scores[3, 9] = -0.0, torch.inf, torch.nan
    scores[4] = 0.0
    visible = torch.tensor([150, 150, 149, 150, 101, 3])
    found = torch.full((6, k), -7)
    call("v32_topk_select", scores, visible, 6, 150, k, found)
    assert torch.equal(found, topk_select.topk_select(scores, k, visible))


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_norm_activation_and_rotation(size: int, generator: torch.Generator) -> None:
    x, w = torch.randn(5, size, generator=generator) * 4, torch.randn(size, generator=generator)
    y = torch.empty_like(x)
    call("v32_rms_norm", x, w, 5, size, 1e-6, y)
    assert torch.allclose(y, rms_norm.rms_norm(x, w, 1e-6), rtol=1e-5, atol=1e-6)
    up = torch.randn(5, size, generator=generator)
    call("v32_swiglu", x, up, x.numel(), y)
    assert torch.allclose(y, swiglu.swiglu(x, up), rtol=1e-5, atol=1e-6)
    pairs = torch.randn(5, 3, 2 * size, generator=generator)
    angles = torch.randn(5, size, generator=generator)
    for interleaved in (True, False):
        turned = pairs.clone()
        call("v32_rope", turned, angles.cos(), angles.sin(), 5, 3, size, int(interleaved))
        assert torch.allclose(turned, rope.rope(pairs, angles.cos(), angles.sin(), interleaved), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 9])
def test_experts(count: int, generator: torch.Generator) -> None:
    experts = [
        ExpertWeights(*(torch.randn(shape, generator=generator) * 0.1 for shape in ((70, 50), (70, 50), (50, 70))))
        for _ in range(6)
    ]
    x = torch.randn(count, 50, generator=generator)
    indices = torch.rand(count, 6, generator=generator).topk(2).indices
    weights = torch.rand(count, 2, generator=generator)
    for each in (experts, experts[::-1]):  # no pointer of the first call is used by the second
        y = moe_experts(x, indices, weights, each)
        assert y is not None
        assert torch.allclose(y, experts_reference.moe_experts(x, indices, weights, each), rtol=1e-4, atol=1e-5)
    nothing = moe_experts(x[:0], indices[:0], weights[:0], experts)
    assert nothing is not None
    assert nothing.shape == (0, 50)
