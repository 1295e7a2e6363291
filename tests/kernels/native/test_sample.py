"""The native sampler draws what the reference draws, whatever the mask, and shows logits that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v32.kernels.sample import cpu, reference, sample
from v32.kernels.token_mask import bitmask_words, token_mask


def rows(count: int, *values: float) -> torch.Tensor:
    return torch.tensor([values[row % len(values)] for row in range(count)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 8.0]), st.booleans())
def test_the_tokens_are_those_of_the_reference(vocab: int, seed: int, spread: float, is_masked: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, vocab, generator=generator) * spread
    logits[1] = logits[1].round()  # ties
    bitmask = (
        torch.randint(-(2**31), 2**31, (6, bitmask_words(vocab)), generator=generator).int() if is_masked else None
    )
    if bitmask is not None:
        bitmask[:, 0] |= 1
    parameters = rows(6, 1.0, 0.7, 0.0, 2.0), rows(6, 0.95, 1.0, 0.5), torch.rand(6, generator=generator).double()
    drawn = cpu.sample(logits, *parameters, bitmask)
    assert drawn is not None
    masked = logits if bitmask is None else token_mask(logits, bitmask)
    assert drawn[0].tolist() == reference.sample(masked, *parameters).tolist()
    assert torch.allclose(drawn[1], logits.log_softmax(-1).gather(1, drawn[0][:, None])[:, 0], atol=1e-5)


def test_a_mask_that_leaves_only_improbable_tokens_is_drawn_from_by_their_own_odds() -> None:
    logits = torch.zeros(2000, 40)
    logits[:, 7], logits[:, 8] = -200.0, -200.0 + math.log(3)
    bitmask = torch.zeros(2000, 2, dtype=torch.int32)
    bitmask[:, 0] = 0b110000000
    ids = sample(logits, torch.ones(2000), torch.ones(2000), torch.linspace(0, 1, 2001).double()[:-1], bitmask).ids
    assert ids.bincount(minlength=40)[[7, 8]].tolist() == pytest.approx([500, 1500], abs=1)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_show_in_the_log_probability(wrong: float, temperature: float) -> None:
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(1))
    logits[0, 30] = wrong
    drawn = sample(logits, torch.tensor([temperature]), torch.tensor([0.9]), torch.tensor([0.4]).double())
    assert not math.isfinite(float(drawn.logprobs))


def test_rows_may_be_a_view() -> None:
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(2)).T
    parameters = torch.zeros(8), torch.ones(8), torch.zeros(8).double()
    assert sample(logits, *parameters).ids.tolist() == logits.argmax(-1).tolist()
