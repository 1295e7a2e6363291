"""Drafts by the multi-token prediction layer: guesses of the next tokens, which the model then checks in one pass.

    positions      0 … e-1   computed          token e known, its hidden state not
    MTP            0 … e-1   hidden state of i, token i+1  ─▶  token i+2; of the last row: a guess of token e+1
    next step      [token e, guess …]          as many rows; a guess stays if the model draws the same token there

A guess is drawn with the random number of its place, and the model draws every token from its own distribution with
that same number. So the tokens are those of the engine without drafts, sampled or greedy, and the two agree often.

The layer's keys and values lie in the pages, as one more layer. Where a prefix was cut, its last position has seen
another next token: one key in a context, which can cost a guess and never a token.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from typing import NamedTuple

import torch
from torch import Tensor

from v32.model_runtime.cache.pages import PagePool
from v32.model_runtime.engine.batch import Part, build_batch
from v32.model_runtime.engine.sampler import Row, draw
from v32.model_runtime.engine.sequence import Sequence
from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

MOST_DRAFTS = 7
"""With the token before them they still decode: `paged_attention.DECODE_TOKENS`."""


class Computed(NamedTuple):
    """What a forward pass computed of one sequence, and the tokens that follow each position (as far as known)."""

    part: Part
    next_ids: Ids[int]  # of the same length
    hidden: Tensor  # [n, D], after the final norm
    sequence: Sequence | None = None  # None: nothing is drafted


class Drafter:
    """Keeps the MTP layer's cache in step with the model's and sets `sequence.drafts`."""

    def __init__(self, model: DeepseekV32ForCausalLM, pool: PagePool, num_drafts: int) -> None:
        if not model.mtp_layers:
            raise ValueError("drafts need an MTP layer, which this model was loaded without; load it with mtp=True")
        if not 1 <= num_drafts <= MOST_DRAFTS:
            raise ValueError(f"{num_drafts} drafts a step; choose 1 to {MOST_DRAFTS}")
        self.model = model
        self.layer = model.mtp_layers[0]
        self.pool = pool
        self.num_drafts = num_drafts

    def run(self, computed: Ids[Computed]) -> None:
        """Extend the layer's cache by what was computed; draft for every sequence that waits for one token only."""
        hidden = self._extend(computed)
        guessing = [(i, c.sequence) for i, c in enumerate(computed) if c.sequence and self._room(c.sequence)]
        guesses = [(sequence, hidden[index][-1]) for index, sequence in guessing]
        for number in range(1, self.num_drafts + 1):
            guesses = self._guess(guesses)
            chained = [(s, row) for s, row in guesses if number < self._room(s)]
            if not chained:
                break
            if number < self.num_drafts:
                parts = [Computed(_next_part(s), [s.drafts[-1]], row[None]) for s, row in chained]
                rows = self._extend(parts)
                guesses = [(s, out[-1]) for (s, _), out in zip(chained, rows, strict=True)]

    def _extend(self, computed: Ids[Computed]) -> list[Tensor]:
        """The layer's hidden states, [n, D] for each."""
        batch = build_batch([c.part for c in computed], self.pool, self.model.config.index_topk)
        hidden = computed[0].hidden.new_empty(len(batch.input_ids), computed[0].hidden.shape[1])
        next_ids = torch.empty_like(batch.input_ids)
        for rows, (part, following, states, _) in zip(batch.rows, computed, strict=True):
            hidden[rows] = states
            next_ids[rows] = next_ids.new_tensor(list(following))
            assert len(following) == len(part.token_ids)
        joined = self.layer.join(hidden, next_ids, batch.positions)
        out = batch.attention.run_draft(self.model.model, joined, batch.positions)
        if out is None:
            cos, sin = self.model.model.rotary(batch.positions)
            out = self.layer.extend(joined, cos, sin, batch.attention)
        return [out[rows] for rows in batch.rows]

    def _guess(self, rows: Ids[tuple[Sequence, Tensor]]) -> list[tuple[Sequence, Tensor]]:
        """Draw one more draft for each sequence; those that got one."""
        if not rows:
            return []
        logits = self.layer.shared_head.head(torch.stack([hidden for _, hidden in rows])).float()
        drawn = draw(logits, [Row(sequence, tuple(sequence.drafts)) for sequence, _ in rows])
        kept = []
        for (sequence, hidden), guess in zip(rows, drawn, strict=True):
            # What follows the end is of no use to anyone.
            if not isinstance(guess, GeneratorError) and guess.token_id not in sequence.stop_token_ids:
                sequence.drafts.append(guess.token_id)
                kept.append((sequence, hidden))
        return kept

    def _room(self, sequence: Sequence) -> int:
        """How many drafts are of use: none while forced tokens wait, none that the limits would cut off."""
        if sequence.is_finished or sequence.table is None or sequence.num_pending != 1:
            return 0
        wanted = min(self.num_drafts, sequence.max_tokens - len(sequence.token_ids) - 1)
        while wanted > 1 and sequence.table.pages_needed(wanted) > self.pool.num_free:
            wanted -= 1
        return wanted


def _next_part(sequence: Sequence) -> Part:
    """The position whose MTP input is the newest draft; its key and value are overwritten by the next real pass."""
    assert sequence.table is not None
    ahead = len(sequence.drafts)
    sequence.table.reserve(ahead)
    return Part(sequence.drafts[-1:], sequence.table, sequence.table.length + ahead - 1)
