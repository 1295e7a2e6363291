"""The next token of every row: grammar mask, temperature, top-p, each row with its own seed and step.

A row may stand behind drafts: tokens that its sequence does not have yet. It is then drawn as it would be if it had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from v32.kernels.sample import counter_uniform, sample
from v32.kernels.token_mask import bitmask_words
from v32.model_runtime.engine.batch import on_device
from v32.model_runtime.engine.sequence import Sequence
from v32.model_runtime.errors import GeneratorError


class Drawn(NamedTuple):
    token_id: int
    logprob: float
    """Under the model's own distribution: temperature 1, no top-p, no grammar."""


class Row(NamedTuple):
    """The place of a token: after the tokens of a sequence and after `drafts`."""

    sequence: Sequence
    drafts: tuple[int, ...] = ()

    @property
    def step(self) -> int:
        return self.sequence.num_new_tokens + len(self.drafts)


def draw(logits: Tensor, rows: Seq[Row]) -> list[Drawn | GeneratorError]:
    """One token for each row of logits [M, V], or why that row has none. A row depends on its logits, seed, step and
    grammar alone."""
    bitmask, failures = _fill_bitmask(rows, logits.shape[1])
    device = logits.device
    parameters = tuple([(row.sequence.params.temperature, row.sequence.params.top_p) for row in rows])
    uniforms = [counter_uniform(row.sequence.seed, row.step) for row in rows]
    uniform = on_device(uniforms, np.float64, device)
    bitmask = None if bitmask is None else bitmask.to(device)
    ids, logprobs = sample(logits, *_temperature_and_top_p(parameters, device), uniform, bitmask)
    pairs = enumerate(zip(ids.tolist(), logprobs.tolist(), strict=True))
    return [failures.get(index) or _checked(*pair) for index, pair in pairs]


@lru_cache(64)
def _temperature_and_top_p(parameters: tuple[tuple[float, float], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """float32 [M] each; the same from step to step, while the batch is the same."""
    temperature, top_p = on_device(list(zip(*parameters, strict=True)), np.float32, device)
    return temperature, top_p


def _fill_bitmask(rows: Seq[Row], vocab_size: int) -> tuple[Tensor | None, dict[int, GeneratorError]]:
    """int32 [M, words], None if no row is masked; and the rows whose grammar failed."""
    failures: dict[int, GeneratorError] = {}
    if all(row.sequence.matcher is None for row in rows):
        return None, failures
    words = np.empty((len(rows), bitmask_words(vocab_size)), np.int32)
    words.fill(-1)
    bitmask = torch.from_numpy(words)
    is_masked = False
    for index, row in enumerate(rows):
        try:
            if not _fill_row(bitmask[index], row):
                words[index] = -1
            elif np.count_nonzero(words[index]):
                is_masked = True
            else:
                raise GeneratorError(f"the grammar allows no token after {row.step} tokens")
        except Exception as error:
            words[index] = -1
            failures[index] = as_generator_error(error)
    return bitmask if is_masked else None, failures


def _fill_row(bitmask: Tensor, row: Row) -> bool:
    """Ask the matcher as if it had accepted the drafts; False if all tokens are allowed."""
    matcher = row.sequence.matcher
    if matcher is None:
        return False
    accepted = 0
    try:
        for token_id in row.drafts:
            if not matcher.accept(token_id):
                return False  # a draft that cannot be drawn: nobody asks for what follows it
            accepted += 1
        return matcher.fill_bitmask(bitmask)
    finally:
        if accepted:
            matcher.rollback(accepted)


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
