"""Many generations at once over one model and one KV cache: token ids in, token ids out; no text, no threads.

add ─▶ waiting ─▶ running ─▶ finished          step: schedule ─▶ forward ─▶ sample ─▶ events
          ▲          │
          └ preempted┘   memory is short: what was computed may be computed again
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from typing import NamedTuple

import torch

from v32.model_runtime.cache.pages import PAGE_SIZE, KVLayout, PagePool
from v32.model_runtime.cache.prefix_cache import PrefixCache
from v32.model_runtime.engine.batch import Batch, build_batch
from v32.model_runtime.engine.sampler import Drawn, as_generator_error, draw
from v32.model_runtime.engine.scheduler import Scheduler
from v32.model_runtime.engine.sequence import Event, Sequence
from v32.model_runtime.errors import ContextOverflowError, GeneratorError
from v32.model_runtime.generators.generator import SamplingParams, TokenConstraint
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM


class SequenceEvent(NamedTuple):
    """Something new of one sequence: a token, or its end."""

    sequence: Sequence
    event: Event


class Engine:
    """Continuous batching with paged KV, prefix reuse, grammar masks and jump-forward. Not thread-safe.

    A sequence's tokens depend on its prompt, parameters and grammar; what shares its batches, where prefill was cut
    and what came from the cache only change the rounding of float32 sums.
    """

    def __init__(
        self,
        model: DeepseekV32ForCausalLM,
        *,
        max_batch_tokens: int = 512,
        max_sequences: int = 64,
        kv_budget_bytes: int = 1 << 30,
        kv_dtype: torch.dtype | None = None,
        max_context: int | None = None,
    ) -> None:
        """`kv_dtype`: default the model's; `max_context`: default what the model and the KV budget allow."""
        weight = model.model.embed_tokens.weight
        self.model = model.eval()
        self.config = model.config
        self.pool = PagePool(KVLayout.of_model(model.config, kv_dtype or weight.dtype, weight.device), kv_budget_bytes)
        self.prefix_cache = PrefixCache(self.pool)
        self.scheduler = Scheduler(
            self.pool, self.prefix_cache, max_batch_tokens=max_batch_tokens, max_sequences=max_sequences
        )
        self.max_context = min(model.config.max_position_embeddings, self.pool.max_pages * PAGE_SIZE)
        if max_context is not None:
            self.max_context = min(self.max_context, max_context)
        self._events: list[SequenceEvent] = []
        self._is_closed = False

    @property
    def has_work(self) -> bool:
        """True while `step` would return events or bring a sequence on."""
        return bool(self._events or self.scheduler.running or self.scheduler.waiting)

    def add(self, prompt_ids: Ids[int], params: SamplingParams, constraint: TokenConstraint | None = None) -> Sequence:
        """Queue a generation. Raises ContextOverflowError, or ValueError for ids that the model does not have."""
        if self._is_closed:
            raise RuntimeError("the engine is closed; load the model again")
        self.check_prompt(prompt_ids)
        sequence = Sequence(prompt_ids, params, constraint.start() if constraint else None, self.max_context)
        self._report(sequence, sequence.append_forced())
        if not sequence.is_finished:
            self.scheduler.add(sequence)
        return sequence

    def check_prompt(self, prompt_ids: Ids[int]) -> None:
        if not prompt_ids:
            raise ValueError("the prompt is empty; it needs at least the begin-of-sentence token")
        if len(prompt_ids) >= self.max_context:
            raise ContextOverflowError(len(prompt_ids), self.max_context)
        for token_id in (min(prompt_ids), max(prompt_ids)):
            if not 0 <= token_id < self.config.vocab_size:
                raise ValueError(f"the prompt holds token {token_id}; the model knows 0..{self.config.vocab_size - 1}")

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence; its pages are free or cached at once, the next step reports `Finished("cancelled")`."""
        if not sequence.is_finished:
            self.scheduler.remove(sequence)
            self._report(sequence, [sequence.finish("cancelled")])

    @torch.inference_mode()
    def step(self) -> list[SequenceEvent]:
        """Run one batch; what is new since the last call, in order. What concerns one sequence alone (its grammar, its
        logits) ends that one with a GeneratorError as its last event; an exception concerns all: call `abort`."""
        chunks = self.scheduler.schedule()
        if chunks:
            self._run(build_batch(chunks, self.pool, self.config.index_topk))
        events, self._events = self._events, []
        return events

    def abort(self) -> None:
        """Drop all sequences without events, and whatever the cache holds of unsure content."""
        for sequence in list(self.scheduler.sequences()):
            self.scheduler.remove(sequence, publish=False)
        self._events.clear()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; needed after the weights have changed."""
        self.prefix_cache.clear()

    def close(self) -> None:
        """Free everything; `add` then raises RuntimeError."""
        self.abort()
        self.reset_prefix_cache()
        self.pool.layers.clear()
        self._is_closed = True

    def check_integrity(self) -> None:
        """Raise AssertionError if a page is lost, shared wrongly or counted wrongly."""
        tables = [sequence.table.pages for sequence in self.scheduler.running if sequence.table]
        self.pool.check_integrity([*tables, self.prefix_cache.pages()])
        self.prefix_cache.check_integrity()

    def _run(self, batch: Batch) -> None:
        hidden = self.model(batch.input_ids, batch.positions, batch.attention)
        drawn = draw(self.model.compute_logits(hidden[batch.sampled_rows]), batch.sampled) if batch.sampled else []
        for sequence, num_tokens in batch.chunks:
            assert sequence.table is not None
            was_prefilling = sequence.is_prefilling
            sequence.table.advance(num_tokens)
            if was_prefilling:
                with_tail = not sequence.is_prefilling
                self.prefix_cache.insert(sequence.token_ids, sequence.table, with_tail=with_tail)
        for sequence, token in zip(batch.sampled, drawn, strict=True):
            self._report(sequence, _append(sequence, token))
            if sequence.is_finished:
                self.scheduler.remove(sequence)

    def _report(self, sequence: Sequence, events: list[Event]) -> None:
        self._events += [SequenceEvent(sequence, event) for event in events]


def _append(sequence: Sequence, drawn: Drawn | GeneratorError) -> list[Event]:
    try:
        if isinstance(drawn, GeneratorError):
            return [sequence.fail(drawn)]
        return sequence.append_sampled(*drawn)
    except Exception as error:
        return [sequence.fail(as_generator_error(error))]
