"""One generation: its tokens, how far they are computed, and what decides that it ends. Token ids only, no text."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence as Ids
from typing import Literal

from v32.model_runtime.cache.block_table import BlockTable
from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.generators.generator import Finished, SamplingParams, Token, TokenMatcher

Event = Token | Finished | GeneratorError
"""A token, the regular end, or the failure of this one sequence."""


class Sequence:
    """Prompt and completion of one generation.

        token_ids   p p p p p p c c f f      p prompt, c sampled, f forced by the grammar
                    └─ table ─┘ └ pending    computed and cached | to be run next

    The last token is always pending: running it yields the logits of the next one. Drafts are guesses of what follows
    it; they are no tokens of the sequence until the model has drawn the same ones.
    """

    def __init__(
        self, prompt_ids: Ids[int], params: SamplingParams, matcher: TokenMatcher | None, max_context: int
    ) -> None:
        self.token_ids = list(prompt_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.params = params
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self.matcher = matcher
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.max_tokens = max_context
        if params.max_new_tokens is not None:
            self.max_tokens = min(max_context, self.num_prompt_tokens + params.max_new_tokens)
        self.table: BlockTable | None = None
        """None while the sequence waits for admission."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache; None before the first admission."""
        self.num_ahead_tokens: int | None = None
        """Of the cached tokens those that were prefilled before the prompt came."""
        self.drafts: list[int] = []
        self.num_drafted = self.num_accepted = 0
        self.last_event: Finished | GeneratorError | None = None
        """Set once, when the sequence ends."""
        self._created_at = time.perf_counter()
        self._first_token_at: float | None = None

    @property
    def num_computed(self) -> int:
        return 0 if self.table is None else self.table.length

    @property
    def num_pending(self) -> int:
        """Known tokens that have not been run."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_new_tokens(self) -> int:
        """Tokens of the completion so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        return self.last_event is not None

    def append_sampled(self, token_id: int, logprob: float) -> list[Event]:
        """Take a sampled token and whatever the grammar forces after it; the news, in order."""
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        token = Token(token_id, logprob if self.params.logprobs else None)
        return self._append(token) + self.append_forced()

    def append_forced(self) -> list[Event]:
        """Take the tokens that the grammar leaves no choice about."""
        events: list[Event] = []
        while self.matcher is not None and not self.is_finished and (forced := self.matcher.forced_tokens()):
            for token_id in forced:
                events += self._append(Token(token_id, 0.0 if self.params.logprobs else None, forced=True))
                if self.is_finished:
                    break
        return events

    def finish(self, reason: Literal["stop", "length", "cancelled"]) -> Finished:
        """Set and return the last event."""
        assert not self.is_finished
        now = time.perf_counter()
        first = self._first_token_at or now
        finished = Finished(
            reason,
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=self.num_cached_tokens or 0,
            ahead_tokens=self.num_ahead_tokens or 0,
            drafted_tokens=self.num_drafted,
            accepted_tokens=self.num_accepted,
            prefill_seconds=first - self._created_at,
            decode_seconds=now - first,
        )
        self.last_event = finished
        return finished

    def fail(self, error: GeneratorError) -> GeneratorError:
        """End the sequence by an error."""
        assert not self.is_finished
        self.last_event = error
        return error

    def _append(self, token: Token) -> list[Event]:
        if self.matcher is not None and not self.matcher.accept(token.id):
            raise GeneratorError(f"the grammar refuses token {token.id}, which its own mask allowed")
        self.token_ids.append(token.id)
        if token.id in self.stop_token_ids:
            return [token, self.finish("stop")]
        if len(self.token_ids) >= self.max_tokens:
            return [token, self.finish("length")]
        return [token]
