"""The next token of every row: grammar mask, temperature, top-p, each row with its own seed and step."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
from torch import Tensor

from v32.kernels.sample import counter_uniform, sample
from v32.kernels.token_mask import bitmask_words
from v32.model_runtime.engine.sequence import Sequence
from v32.model_runtime.errors import GeneratorError


class Drawn(NamedTuple):
    token_id: int
    logprob: float
    """Under the model's own distribution: temperature 1, no top-p, no grammar."""


def draw(logits: Tensor, sequences: Seq[Sequence]) -> list[Drawn | GeneratorError]:
    """One token for each row of logits [M, V], or why that row has none. A row depends on its logits, seed, step and
    grammar alone."""
    bitmask, failures = _fill_bitmask(sequences, logits.shape[1])
    ids, logprobs = sample(
        logits,
        torch.tensor([sequence.params.temperature for sequence in sequences]),
        torch.tensor([sequence.params.top_p for sequence in sequences]),
        torch.tensor([counter_uniform(s.seed, s.num_new_tokens) for s in sequences], dtype=torch.float64),
        bitmask,
    )
    rows = enumerate(zip(ids.tolist(), logprobs.tolist(), strict=True))
    return [failures.get(row) or _checked(*pair) for row, pair in rows]


def _fill_bitmask(sequences: Seq[Sequence], vocab_size: int) -> tuple[Tensor | None, dict[int, GeneratorError]]:
    """int32 [M, words], None if no row is masked; and the rows whose grammar failed."""
    failures: dict[int, GeneratorError] = {}
    if all(sequence.matcher is None for sequence in sequences):
        return None, failures
    bitmask = torch.full((len(sequences), bitmask_words(vocab_size)), -1, dtype=torch.int32)
    is_masked = False
    for row, sequence in enumerate(sequences):
        try:
            if sequence.matcher is None or not sequence.matcher.fill_bitmask(bitmask[row]):
                bitmask[row] = -1
            elif bitmask[row].any():
                is_masked = True
            else:
                raise GeneratorError(f"the grammar allows no token after {sequence.num_new_tokens} tokens")
        except Exception as error:
            bitmask[row] = -1
            failures[row] = as_generator_error(error)
    return bitmask if is_masked else None, failures


def _checked(token_id: int, logprob: float) -> Drawn | GeneratorError:
    if -math.inf < logprob <= 1e-3:
        return Drawn(token_id, logprob)
    return GeneratorError(
        f"token {token_id} has log-probability {logprob}: the model's logits are not finite; check the checkpoint's "
        "weights, or compute in float32"
    )


def as_generator_error(error: Exception) -> GeneratorError:
    """The error itself, or one that has it as its cause."""
    if isinstance(error, GeneratorError):
        return error
    wrapped = GeneratorError(f"the grammar failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
