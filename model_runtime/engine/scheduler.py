"""Which tokens run next: admission, shares of the batch, and who gives way when memory is short.

Sequences come in, chunks (a sequence and how many of its pending tokens) go out. No tensors here but the pages' count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from v32.model_runtime.cache.pages import PAGE_SIZE, PagePool
from v32.model_runtime.cache.prefix_cache import PrefixCache
from v32.model_runtime.engine.sequence import Sequence


class Chunk(NamedTuple):
    """The next `num_tokens` pending tokens of a sequence and its first drafts; its table has room for them."""

    sequence: Sequence
    num_tokens: int
    num_drafts: int = 0

    @property
    def is_last(self) -> bool:
        """Nothing stays pending: the last token's logits give a new one."""
        return self.num_tokens == self.sequence.num_pending


class Scheduler:
    """First come, first admitted; who decodes is in every batch; when memory is short the youngest gives way."""

    def __init__(self, pool: PagePool, prefix_cache: PrefixCache, *, max_batch_tokens: int, max_sequences: int) -> None:
        if not 1 <= max_sequences <= max_batch_tokens:
            raise ValueError(
                f"max_sequences is {max_sequences}; it must be 1 or more, at most max_batch_tokens ({max_batch_tokens})"
            )
        self.pool = pool
        self.prefix_cache = prefix_cache
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.num_preemptions = 0

    def sequences(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, *, publish: bool = True) -> None:
        """Let a sequence go; what it computed stays in the prefix cache if `publish`."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence, publish=publish)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The next batch: never empty while there are sequences, never more than `max_batch_tokens`."""
        self._admit()
        shares = self._shares()
        chunks = []
        for sequence in list(self.running):
            num_tokens = min(shares[sequence], sequence.num_pending)
            num_drafts = shares[sequence] - num_tokens
            if num_tokens and sequence in self.running and self._make_room(sequence, num_tokens):
                num_drafts = num_drafts and self._room_for_drafts(sequence, num_tokens, num_drafts)
                chunks.append(Chunk(sequence, num_tokens, num_drafts))
        return chunks

    def _admit(self) -> None:
        for sequence in list(self.waiting):
            if len(self.running) == self.max_sequences:
                return
            if self._will_be_cached(sequence):
                continue
            table = self.prefix_cache.match(sequence.token_ids)
            if self.running and table.pages_needed(len(sequence.token_ids) - table.length) > self._num_available():
                table.close()
                return
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = min(table.length, sequence.num_prompt_tokens)
            sequence.table = table
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def _will_be_cached(self, sequence: Sequence) -> bool:
        """A running sequence is about to compute the next page of this one: wait for it rather than do it twice."""
        rivals = [other for other in self.running if other.is_prefilling]
        if not rivals:
            return False
        start = self.prefix_cache.match_length(sequence.token_ids)
        end = min(start - start % PAGE_SIZE + PAGE_SIZE, len(sequence.token_ids) - 1)
        head = sequence.token_ids[:end]
        return start < end and any(other.token_ids[:end] == head for other in rivals)

    def _num_available(self) -> int:
        """Pages to be had without preemption, when all running sequences have run their pending tokens."""
        promised = sum(s.table.pages_needed(s.num_pending) for s in self.running if s.table is not None)
        return self.pool.num_free + self.prefix_cache.num_evictable - promised

    def _shares(self) -> dict[Sequence, int]:
        """Tokens of each running sequence: first those who decode, evenly; half of the rest for the oldest prompt, so
        that it gets on; the other half for those that are nearest to their first token."""
        shares = {sequence: _num_wanted(sequence) for sequence in self.running}
        if sum(shares.values()) <= self.max_batch_tokens:
            return shares
        shares, left = {}, self.max_batch_tokens
        decoding = sorted((s for s in self.running if not s.is_prefilling), key=_num_wanted)
        for index, sequence in enumerate(decoding):
            shares[sequence] = min(_num_wanted(sequence), left // (len(decoding) - index))
            left -= shares[sequence]
        prefilling = [s for s in self.running if s.is_prefilling]
        oldest_first = [(prefilling[0], (left + 1) // 2)] if prefilling else []
        for sequence, limit in oldest_first + [(s, left) for s in sorted(prefilling, key=lambda s: s.num_pending)]:
            more = min(sequence.num_pending - shares.get(sequence, 0), limit, left)
            shares[sequence] = shares.get(sequence, 0) + more
            left -= more
        return shares

    def make_free(self, num_pages: int) -> bool:
        """Have so many pages free by forgetting what was cached; False if that is not enough."""
        while (missing := num_pages - self.pool.num_free) > 0:
            if self.prefix_cache.evict(missing) == 0:
                return False
        return True

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Reserve pages: free ones, then evicted ones, then those of the youngest; False if that is the sequence."""
        assert sequence.table is not None
        while (missing := sequence.table.pages_needed(num_tokens) - self.pool.num_free) > 0:
            if self.prefix_cache.evict(missing) > 0:
                continue
            youngest = self.running[-1]
            if len(self.running) == 1:
                # Alone: pages shared with the cache only count twice; max_context makes sure that the rest fits.
                self.prefix_cache.clear()
                break
            self._preempt(youngest)
            if youngest is sequence:
                return False
        sequence.table.reserve(num_tokens)
        return True

    def _room_for_drafts(self, sequence: Sequence, num_tokens: int, num_drafts: int) -> int:
        """How many drafts fit into pages that are free; for a guess nobody gives way."""
        assert sequence.table is not None
        while num_drafts and sequence.table.pages_needed(num_tokens + num_drafts) > self.pool.num_free:
            num_drafts -= 1
        sequence.table.reserve(num_tokens + num_drafts)
        return num_drafts

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue; what is evicted of it in the meantime will be computed again."""
        self.num_preemptions += 1
        self.running.remove(sequence)
        self._release(sequence, publish=True)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence, *, publish: bool) -> None:
        assert sequence.table is not None
        sequence.drafts = []
        if publish:
            self.prefix_cache.insert(sequence.token_ids, sequence.table)
        sequence.table.close()
        sequence.table = None


def _num_wanted(sequence: Sequence) -> int:
    """Tokens that a decoding sequence would run at once."""
    return sequence.num_pending + len(sequence.drafts)
