"""Many generations at once over one model and one KV cache: token ids in, token ids out; no text, no threads.

add ─▶ waiting ─▶ running ─▶ finished          step: schedule ─▶ forward ─▶ sample ─▶ events
          ▲          │
          └ preempted┘   memory is short: what was computed may be computed again

prefill_ahead ─▶ wanted ─▶ step_ahead, while `has_work` is False: prompts that will probably come
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Ids
from typing import NamedTuple

import torch
from torch import Tensor

from v32.model_runtime.cache.disk import Identity, check_kv, read_kv, write_kv
from v32.model_runtime.cache.pages import PAGE_SIZE, KVLayout, PagePool
from v32.model_runtime.cache.prefix_cache import PrefixCache
from v32.model_runtime.engine.ahead import Ahead
from v32.model_runtime.engine.batch import Part, build_batch
from v32.model_runtime.engine.decode_graph import Capture, CudaGraphs, DecodeGraphs
from v32.model_runtime.engine.sampler import Drawn, Row, as_generator_error, draw
from v32.model_runtime.engine.scheduler import Chunk, Scheduler
from v32.model_runtime.engine.sequence import Event, Sequence
from v32.model_runtime.engine.speculative import Computed, Drafter
from v32.model_runtime.errors import ContextOverflowError, GeneratorError, KVFileError
from v32.model_runtime.generators.generator import SamplingParams, TokenConstraint, context_within
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM


class SequenceEvent(NamedTuple):
    """Something new of one sequence: a token, or its end."""

    sequence: Sequence
    event: Event


class Engine:
    """Continuous batching with paged KV, prefix reuse, grammar masks, jump-forward and drafts. Not thread-safe.

    A sequence's tokens depend on its prompt, parameters and grammar; what shares its batches, where prefill was cut,
    what came from the cache and what was drafted only change the rounding of float32 sums.
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
        num_drafts: int = 0,
        capture: Capture | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """`kv_dtype`: default the model's; `max_context`: default what the model and the KV budget allow.

        `num_drafts`: tokens that the MTP layer guesses a step, checked in the next one; 0: none. `capture` records
        decoding steps; on a GPU it is `CudaGraphs` unless a pass has to wait for the host. `on_close` lets go of what
        belongs to the model beside this process.
        """
        weight = model.model.norm.weight
        self.model = model.eval()
        self.config = model.config
        layout = KVLayout.of_model(
            model.config, kv_dtype or weight.dtype, weight.device, num_mtp_layers=1 if num_drafts else 0
        )
        self.pool = PagePool(layout, kv_budget_bytes)
        self.prefix_cache = PrefixCache(self.pool)
        self.scheduler = Scheduler(
            self.pool, self.prefix_cache, max_batch_tokens=max_batch_tokens, max_sequences=max_sequences
        )
        self.ahead = Ahead(max_batch_tokens)
        self.drafter = Drafter(self.model, self.pool, num_drafts) if num_drafts else None
        bounds = {
            "what the model was made for": model.config.max_position_embeddings,
            "what the KV budget has room for": self.pool.max_pages * PAGE_SIZE,
        }
        self.max_context = context_within(bounds, max_context)
        if capture is None and weight.is_cuda and self.model.is_recordable:
            capture = CudaGraphs()
        self.graphs = DecodeGraphs(self.model, self.pool, capture) if capture else None
        self._events: list[SequenceEvent] = []
        self._is_closed = False
        self._on_close = on_close

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
        for sequence in (chunk.sequence for chunk in chunks):
            if sequence.num_ahead_tokens is None:
                sequence.num_ahead_tokens = self.ahead.credit(sequence.token_ids, sequence.num_cached_tokens or 0)
        if chunks:
            self._run(chunks)
        events, self._events = self._events, []
        return events

    def prefill_ahead(self, owner: Hashable, token_ids: Ids[int]) -> None:
        """A prompt of this owner will probably begin with these ids: `step_ahead` computes what is not cached of them.

        Replaces what the owner wanted before; ids beyond `max_context` are left out. Never changes any token.
        """
        if self._is_closed:
            raise RuntimeError("the engine is closed; load the model again")
        token_ids = token_ids[: self.max_context - 1]
        if token_ids:
            self.check_prompt(token_ids)
            self.ahead.want(owner, list(token_ids))

    @property
    def has_work_ahead(self) -> bool:
        """True while `step_ahead` would compute something; do so only while nobody waits."""
        return bool(self.ahead)

    @torch.inference_mode()
    def step_ahead(self) -> None:
        """Prefill a piece of the oldest wish, about `ahead.STEP_SECONDS` long. It holds nothing afterwards."""
        owner, token_ids = self.ahead.next()
        started = time.perf_counter()
        table = self.prefix_cache.match([*token_ids, -1])  # the last one too: nobody wants logits
        start = table.length
        part = Part(token_ids[start : start + self.ahead.step_tokens], table, start)
        end = start + len(part.token_ids)
        try:
            if part.token_ids and self.scheduler.make_free(table.pages_needed(len(part.token_ids))):
                table.reserve(len(part.token_ids))
                (hidden,) = self._forward([part])
                table.advance(len(part.token_ids))
                if self.drafter is not None:
                    self.drafter.run([Computed(part, _padded(token_ids[start + 1 : end + 1], part), hidden)])
                self.prefix_cache.insert(token_ids, table)
                self.ahead.record(owner, start, end, time.perf_counter() - started)
            else:
                end = len(token_ids)  # all is there, or there is no room for more
        except BaseException:
            self.ahead.clear()
            raise
        finally:
            table.close()
        if end == len(token_ids):
            self.ahead.finish(owner)

    def abort(self) -> None:
        """Drop all sequences without events, and whatever the cache holds of unsure content."""
        for sequence in list(self.scheduler.sequences()):
            self.scheduler.remove(sequence, publish=False)
        self.ahead.clear()
        self._events.clear()

    def save_kv(self, path: str | os.PathLike[str], token_ids: Ids[int], identity: Identity) -> int:
        """Write what is cached of these ids to a file, if anything is; how many positions. Raises KVFileError.

        `identity` is what the caller knows of weights and ids; a file is read only by an engine that says the same.
        """
        table = self.prefix_cache.match([*token_ids, -1])
        try:
            if table.length:
                write_kv(path, token_ids, table, {**identity, "numerics": self._numerics})
            return table.length
        finally:
            table.close()

    def load_kv(self, path: str | os.PathLike[str], identity: Identity) -> int:
        """Put a file of `save_kv` into the prefix cache; how many positions. KVFileError: nothing has changed."""
        identity = {**identity, "numerics": self._numerics}
        num_tokens = check_kv(path, self.pool.layout, identity)
        if not self.scheduler.make_free(-(-num_tokens // PAGE_SIZE)):
            raise KVFileError(f"{path} holds {num_tokens} tokens, for which the KV budget has no room")
        token_ids, table = read_kv(path, self.pool, identity)
        self.prefix_cache.insert(token_ids, table)
        table.close()
        return num_tokens

    @property
    def _numerics(self) -> str:
        return "deepseek" if any(getattr(m, "rounds_latent", False) for m in self.model.modules()) else "float"

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; needed after the weights have changed."""
        self.ahead.clear()
        self.prefix_cache.clear()
        if self.graphs is not None:
            self.graphs.clear()

    def close(self) -> None:
        """Free everything; `add` then raises RuntimeError."""
        self.abort()
        self.reset_prefix_cache()
        self.pool.layers.clear()
        self._is_closed = True
        if self._on_close is not None:
            self._on_close()

    def check_integrity(self) -> None:
        """Raise AssertionError if a page is lost, shared wrongly or counted wrongly."""
        tables = [sequence.table.pages for sequence in self.scheduler.running if sequence.table]
        self.pool.check_integrity([*tables, self.prefix_cache.pages()])
        self.prefix_cache.check_integrity()

    def _run(self, chunks: Ids[Chunk]) -> None:
        """Compute the chunks, draw, see which drafts were right, publish, and draft anew."""
        parts = [_part(chunk) for chunk in chunks]
        hidden = self._forward(parts)
        for chunk, drawn in zip(chunks, self._draw(chunks, hidden), strict=True):
            self._take(chunk, drawn)
        if self.drafter is not None:
            sequences = [chunk.sequence for chunk in chunks]
            self.drafter.run([_computed(*each) for each in zip(sequences, parts, hidden, strict=True)])
        for sequence in [chunk.sequence for chunk in chunks if chunk.sequence.is_finished]:
            self.scheduler.remove(sequence)

    def _forward(self, parts: Ids[Part]) -> list[Tensor]:
        """Hidden states of the parts' tokens, [n, D] for each; keys and values go to the pages."""
        if self.graphs is not None and self.graphs.takes(parts):
            return self.graphs.run(parts)
        batch = build_batch(parts, self.pool, self.config.index_topk)
        hidden = self.model(batch.input_ids, batch.positions, batch.attention)
        return [hidden[rows] for rows in batch.rows]

    def _draw(self, chunks: Ids[Chunk], hidden: Ids[Tensor]) -> list[list[Drawn | GeneratorError]]:
        """For each chunk: nothing while tokens stay pending, else a token behind the last one and behind each draft."""
        rows, states = [], []
        for chunk, state in zip(chunks, hidden, strict=True):
            if chunk.is_last:
                drafts = chunk.sequence.drafts[: chunk.num_drafts]
                rows += [Row(chunk.sequence, tuple(drafts[:number])) for number in range(len(drafts) + 1)]
                states.append(state[-1 - len(drafts) :])
        if not rows:
            return [[] for _ in chunks]
        logits = self.model.compute_logits(states[0] if len(states) == 1 else torch.cat(states))
        drawn = iter(draw(logits, rows))
        return [[next(drawn) for _ in range(chunk.num_drafts + 1)] if chunk.is_last else [] for chunk in chunks]

    def _take(self, chunk: Chunk, drawn: Ids[Drawn | GeneratorError]) -> None:
        """Bring one sequence on."""
        sequence, table = chunk.sequence, chunk.sequence.table
        assert table is not None
        was_prefilling = sequence.is_prefilling
        table.advance(chunk.num_tokens)
        if was_prefilling:
            self.prefix_cache.insert(sequence.token_ids, table, with_tail=not sequence.is_prefilling)
        if drawn:
            events, num_accepted = _append_verified(sequence, sequence.drafts[: chunk.num_drafts], drawn)
            if sequence.drafts:
                table.advance(num_accepted)
                table.truncate(table.length)  # the pages of drafts that were wrong
                sequence.drafts = []
            self._report(sequence, events)

    def _report(self, sequence: Sequence, events: list[Event]) -> None:
        self._events += [SequenceEvent(sequence, event) for event in events]


def _part(chunk: Chunk) -> Part:
    """The chunk's pending tokens and drafts."""
    sequence = chunk.sequence
    assert sequence.table is not None
    start = sequence.num_computed
    pending = sequence.token_ids[start : start + chunk.num_tokens]
    return Part([*pending, *sequence.drafts[: chunk.num_drafts]], sequence.table, start)


def _computed(sequence: Sequence, part: Part, hidden: Tensor) -> Computed:
    """What was computed of a sequence for good: its part without the drafts that were wrong."""
    assert sequence.table is not None
    end = sequence.table.length
    part = part._replace(token_ids=part.token_ids[: end - part.start])
    following = sequence.token_ids[part.start + 1 : end + 1]
    return Computed(part, _padded(following, part), hidden[: end - part.start], sequence)


def _padded(following: Ids[int], part: Part) -> Ids[int]:
    """The tokens after each position of a part; 0 where the last one is not known."""
    return [*following, *[0] * (len(part.token_ids) - len(following))]


def _append_verified(
    sequence: Sequence, drafts: Ids[int], drawn: Ids[Drawn | GeneratorError]
) -> tuple[list[Event], int]:
    """Take what the model drew behind the pending token and behind each draft, as far as the drafts were right.

    The news, and how many drafts have become tokens of the sequence.
    """
    events: list[Event] = []
    sequence.num_drafted += len(drafts)
    for index, (result, draft) in enumerate(zip(drawn, [*drafts, None], strict=True)):
        length = len(sequence.token_ids)
        is_right = isinstance(result, Drawn) and result.token_id == draft
        sequence.num_accepted += is_right  # before the end is reported
        events += _append(sequence, result)
        num_new = len(sequence.token_ids) - length
        if not is_right or not num_new:
            return events, index
        if num_new > 1 or sequence.is_finished:  # what the grammar forces is not drawn
            return events, index + 1
    raise AssertionError("one token more is drawn than there are drafts")


def _append(sequence: Sequence, drawn: Drawn | GeneratorError) -> list[Event]:
    try:
        if isinstance(drawn, GeneratorError):
            return [sequence.fail(drawn)]
        return sequence.append_sampled(*drawn)
    except Exception as error:
        return [sequence.fail(as_generator_error(error))]
