"""Kernels that choose: top-k, routing and sampling agree with their references exactly."""

from __future__ import annotations

import pytest
import torch

from v32.kernels.moe_route import reference as moe_reference
from v32.kernels.sample import counter_uniform
from v32.kernels.sample import reference as sample_reference
from v32.kernels.topk_select import reference as topk_reference


@pytest.mark.parametrize("k", [1, 7, 64, 400])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "special"])
def test_topk_select_is_exact(device: str, rng: torch.Generator, kind: str, k: int) -> None:
    from v32.kernels.topk_select import triton as kernel

    scores = torch.randn(6, 300, generator=rng)
    if kind == "ties":
        scores = (scores * 2).round()
    elif kind == "zeros":
        scores = torch.where(torch.rand(6, 300, generator=rng) < 0.5, torch.tensor(-0.0), torch.relu(scores))
    elif kind == "special":
        special = torch.tensor([torch.nan, torch.inf, -torch.inf, -torch.nan, 1e-45, -1e-45, 3.4e38, 0.0])
        scores = special[torch.randint(0, 8, (6, 300), generator=rng)]
    visible = torch.tensor([300, 1, 17, 256, 299, 5])
    # What a query does not see was never written.
    scores = torch.where(torch.arange(300) < visible[:, None], scores, torch.nan).to(device)
    visible = visible.to(device)
    expected = topk_reference.topk_select(scores, k, visible)
    assert torch.equal(kernel.topk_select(scores, k, visible, True), expected)
    loose = kernel.topk_select(scores, k, visible, False)
    assert torch.equal(loose.sort(-1).values, expected.sort(-1).values)


@pytest.mark.parametrize(
    ("experts", "n_group", "topk_group", "top_k"),
    [(256, 8, 4, 8), (16, 4, 2, 3), (6, 1, 1, 2), (12, 3, 1, 4), (4, 4, 2, 1)],
)
@pytest.mark.parametrize("norm", [True, False])
def test_moe_route(
    device: str, rng: torch.Generator, experts: int, n_group: int, topk_group: int, top_k: int, norm: bool
) -> None:
    from v32.kernels.moe_route import triton as kernel

    logits = torch.randn(7, experts, generator=rng).to(device)
    bias = (torch.randn(experts, generator=rng) * 0.1).to(device)
    weights, indices = kernel.moe_route(logits, bias, top_k, n_group, topk_group, norm)
    expected_weights, expected = moe_reference.moe_route(logits, bias, top_k, n_group, topk_group, norm)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-7)


def test_of_equal_experts_the_lower_is_chosen(device: str) -> None:
    from v32.kernels.moe_route import triton as kernel

    logits, bias = torch.zeros(1, 16, device=device), torch.zeros(16, device=device)
    _, indices = kernel.moe_route(logits, bias, 3, 4, 2, True)
    assert indices.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("top_p", [0.9, 0.2, 1.0])
def test_sample_draws_the_tokens_of_the_reference(device: str, rng: torch.Generator, top_p: float) -> None:
    from v32.kernels.sample import triton as kernel

    logits = torch.randn(6, 300, generator=rng) * 3
    logits[2:4] = logits[2:4].round()  # ties
    logits[4:, ::2] = -torch.inf  # masked
    temperature = torch.tensor([0.0, 0.5, 1.0] * 2)
    uniforms = torch.tensor([counter_uniform(3, step) for step in range(6)], dtype=torch.float64)
    uniforms[-1] = 0.0
    arguments = [t.to(device) for t in (logits, temperature, torch.full((6,), top_p, dtype=torch.float64), uniforms)]
    ids = kernel.sample(*arguments)
    assert torch.equal(ids, sample_reference.sample(*arguments))
    for row in (1, 5):
        assert kernel.sample(*(t[row : row + 1] for t in arguments)) == ids[row]
