"""sample: exact nucleus, repeatable randomness, and rows that do not know each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v32.kernels.sample import counter_uniform, sample
from v32.kernels.token_mask import bitmask_words


def draw(logits: torch.Tensor, temperature: float, top_p: float, uniform: float) -> int:
    one = torch.ones(1)
    return int(sample(logits[None], one * temperature, one * top_p, torch.tensor([uniform]).double()).ids)


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> list[int]:
    """The definition, in Python floats."""
    weights = [math.exp((x - float(logits.max())) / temperature) for x in logits.tolist()]
    total, mass, kept = math.fsum(weights), 0.0, []
    for token in sorted(range(len(weights)), key=lambda token: (-weights[token], token)):
        if mass >= top_p:
            break
        kept.append(token)
        mass += weights[token] / total
    return kept


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_the_drawn_tokens_are_the_nucleus(seed: int, temperature: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, generator=generator)
    logits[3] = logits[7]
    drawn = {draw(logits, temperature, top_p, (step + 0.5) / 4000) for step in range(0, 4000, 101)}
    assert drawn <= set(nucleus(logits, temperature, top_p))
    assert draw(logits, temperature, top_p, 0.0) == nucleus(logits, temperature, top_p)[0]
    assert draw(logits, temperature, top_p, 1 - 2**-53) == nucleus(logits, temperature, top_p)[-1]


def test_frequencies_follow_the_truncated_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    steps = 8_000
    rows = logits.expand(steps, 5)
    uniforms = torch.tensor([counter_uniform(11, step) for step in range(steps)], dtype=torch.float64)
    ids = sample(rows, torch.ones(steps), torch.full((steps,), 0.9), uniforms).ids
    kept = nucleus(logits, 1.0, 0.9)
    expected = torch.zeros(5)
    expected[kept] = torch.softmax(logits[kept], -1)
    assert torch.allclose(ids.bincount(minlength=5) / steps, expected, atol=0.02)


@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.999, 1.0])
def test_large_vocabularies_sort_only_candidates_with_the_same_result(top_p: float) -> None:
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(5000, generator=generator)
    for logits in (flat, flat * 6, (flat * 6).round()):
        probs = torch.softmax(logits.double(), -1)
        ordered, ids = probs.sort(descending=True, stable=True)
        mass = ordered.cumsum(-1)
        size = int((mass - ordered < top_p).sum())
        for step in range(20):
            uniform = counter_uniform(5, step)
            expected = ids[torch.searchsorted(mass[:size], uniform * mass[size - 1], right=True).clamp_max(size - 1)]
            assert draw(logits, 1.0, top_p, uniform) == int(expected)


def test_temperature_zero_takes_the_lowest_id_of_the_largest() -> None:
    logits = torch.tensor([1.0, 4.0, 4.0, 0.0])
    assert draw(logits, 0.0, 1.0, 0.99) == 1


def test_a_masked_token_is_never_drawn_and_logprobs_ignore_the_mask() -> None:
    logits = torch.randn(4, 70, generator=torch.Generator().manual_seed(2))
    bitmask = torch.zeros(4, bitmask_words(70), dtype=torch.int32)
    bitmask[:, 1] = 0b1010  # tokens 33 and 35
    for temperature in (0.0, 1.0):
        uniforms = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        ids, logprobs = sample(logits, torch.full((4,), temperature), torch.ones(4), uniforms, bitmask)
        assert set(ids.tolist()) <= {33, 35}
        assert torch.allclose(logprobs, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0], atol=1e-6)


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits = torch.randn(9, 3000, generator=torch.Generator().manual_seed(4))
    temperature = torch.tensor([0.0, 1.0, 0.7] * 3)
    top_p = torch.tensor([0.95, 0.5, 1.0] * 3)
    uniforms = torch.tensor([counter_uniform(row, 3) for row in range(9)], dtype=torch.float64)
    together = sample(logits, temperature, top_p, uniforms)
    for row in range(9):
        alone = sample(logits[row : row + 1], temperature[row : row + 1], top_p[row : row + 1], uniforms[row : row + 1])
        assert alone.ids == together.ids[row]
        assert alone.logprobs == together.logprobs[row]


def test_counter_uniform_is_even_and_depends_on_seed_and_step() -> None:
    numbers = [counter_uniform(seed, step) for seed in range(40) for step in range(250)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    tenths = torch.histc(torch.tensor(numbers), 10, 0, 1)
    assert tenths.min() > 900
    assert tenths.max() < 1100


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="top_p has shape"):
        sample(torch.zeros(2, 4), torch.ones(2), torch.ones(3), torch.zeros(2))
