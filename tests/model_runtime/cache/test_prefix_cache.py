"""PrefixCache: it finds the longest prefix there is, holds exactly its pages, and forgets the least used first."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from v32.model_runtime.cache import PAGE_SIZE, BlockTable, KVLayout, PagePool, PrefixCache

LAYOUT = KVLayout(num_layers=1, kv_lora_rank=1, qk_rope_head_dim=1, index_head_dim=1)


def make(num_pages: int = 1000) -> PrefixCache:
    return PrefixCache(PagePool(LAYOUT, num_pages * LAYOUT.page_bytes))


def compute(cache: PrefixCache, token_ids: list[int], *, with_tail: bool = True) -> int:
    """What an engine does with a prompt: match, compute the rest, publish, let go. Returns what was reused.

    The content of a position is the hash of its prefix, so that a wrong match is noticed.
    """
    table = cache.match(token_ids)
    reused = table.length
    assert stored(table) == hashes(token_ids)[:reused]
    table.reserve(len(token_ids) - reused)
    values = torch.tensor(hashes(token_ids)[reused:], dtype=torch.float32)
    cache.pool.layers[0].records[table.slots(reused, len(token_ids))] = values[:, None]
    table.advance(len(token_ids) - reused)
    cache.insert(token_ids, table, with_tail=with_tail)
    table.close()
    check(cache)
    return reused


def hashes(token_ids: list[int]) -> list[int]:
    result, value = [], 0
    for token_id in token_ids:
        value = (value * 31 + token_id + 1) % 9973
        result.append(value)
    return result


def stored(table: BlockTable) -> list[int]:
    return table.pool.layers[0].records[table.slots(0, table.length)][:, 0].int().tolist()


def check(cache: PrefixCache) -> None:
    cache.check_integrity()
    cache.pool.check_integrity([cache.pages()])


def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


prompts = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([1, 5, 60, 64, 70, 130])).map(lambda part: [part[0]] * part[1]),
    min_size=1,
    max_size=4,
).map(lambda parts: [token for part in parts for token in part])


@given(st.lists(prompts, min_size=1, max_size=8))
def test_every_prompt_reuses_its_longest_common_prefix(history: list[list[int]]) -> None:
    cache = make()
    for index, prompt in enumerate(history):
        longest = max((common(prompt, earlier) for earlier in history[:index]), default=0)
        assert compute(cache, prompt) == min(longest, len(prompt) - 1)


@settings(max_examples=settings.default.max_examples // 5)
@given(st.lists(prompts, min_size=1, max_size=8), st.integers(1, 5))
def test_eviction_frees_what_it_says_and_breaks_no_path(history: list[list[int]], num_pages: int) -> None:
    cache = make()
    for prompt in history:
        compute(cache, prompt)
    held = cache.match([*history[0], 9])
    while cache.num_evictable:
        used = cache.pool.num_used
        assert cache.evict(num_pages) == used - cache.pool.num_used > 0
        cache.check_integrity()
        cache.pool.check_integrity([cache.pages(), held.pages])
    assert stored(held) == hashes(history[0])
    cache.clear()
    held.close()
    assert cache.pool.num_used == 0


def test_the_least_recently_used_goes_first() -> None:
    cache = make()
    old, new = [1] * 3 * PAGE_SIZE, [2] * 3 * PAGE_SIZE
    for prompt in (old, new, old):
        compute(cache, prompt)
    cache.evict(3)
    assert cache.match_length([*new, 0]) == 0
    assert cache.match_length([*old, 0]) == len(old)
    cache.evict(1)  # from the end of the path, so that its beginning stays of use
    assert cache.match_length([*old, 0]) == 2 * PAGE_SIZE


def test_a_growing_sequence_keeps_one_copy_of_its_tail() -> None:
    cache = make()
    for length in range(1, 200, 7):
        compute(cache, [5] * length)
        assert len(cache) == -(-length // PAGE_SIZE)


def test_without_tail_only_full_pages_are_published() -> None:
    cache = make()
    compute(cache, [5] * 100, with_tail=False)
    assert cache.match_length([5] * 100) == PAGE_SIZE


class Cache(RuleBasedStateMachine):
    """Random use of a cache under a memory budget that is always short, against plain lists.

    Sequences match, grow, fork, roll back, publish and end; every position keeps its content, whatever is evicted.
    """

    @initialize()
    def start(self) -> None:
        self.cache = make(num_pages=12)
        self.running: list[tuple[BlockTable, list[int]]] = []
        self.published: list[list[int]] = []

    @rule(prompt=prompts)
    def begin(self, prompt: list[int]) -> None:
        longest = self.cache.match_length(prompt)
        table = self.cache.match(prompt)
        assert table.length == longest <= max((common(prompt, known) for known in self.published), default=0)
        assert longest < len(prompt)
        self.running.append((table, prompt[:longest]))
        self.grow_by(len(self.running) - 1, prompt[longest:])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), token_id=st.integers(0, 1), num_tokens=st.sampled_from([1, 2, 63, 64, 65]))
    def grow(self, data: st.DataObject, token_id: int, num_tokens: int) -> None:
        self.grow_by(data.draw(st.integers(0, len(self.running) - 1)), [token_id] * num_tokens)

    def grow_by(self, index: int, new_ids: list[int]) -> None:
        """What the scheduler does: evict for it, give up if that is not enough."""
        table, ids = self.running[index]
        missing = table.pages_needed(len(new_ids)) - self.cache.pool.num_free
        if missing > 0 and self.cache.evict(missing) < missing:
            return
        table.reserve(len(new_ids))
        values = torch.tensor(hashes([*ids, *new_ids])[len(ids) :], dtype=torch.float32)
        self.cache.pool.layers[0].records[table.slots(len(ids), len(ids) + len(new_ids))] = values[:, None]
        table.advance(len(new_ids))
        self.running[index] = (table, [*ids, *new_ids])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), with_tail=st.booleans(), ends=st.booleans())
    def publish(self, data: st.DataObject, with_tail: bool, ends: bool) -> None:
        index = data.draw(st.integers(0, len(self.running) - 1))
        table, ids = self.running[index]
        self.cache.insert(ids, table, with_tail=with_tail)
        self.published.append(ids)
        kept = len(ids) if with_tail else len(ids) - len(ids) % PAGE_SIZE
        assert self.cache.match_length([*ids, 2]) >= kept
        if ends:
            self.running.pop(index)[0].close()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), share=st.floats(0, 1))
    def roll_back(self, data: st.DataObject, share: float) -> None:
        index = data.draw(st.integers(0, len(self.running) - 1))
        table, ids = self.running[index]
        ids = ids[: int(share * len(ids))]
        table.truncate(len(ids))
        self.running[index] = (table, ids)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), share=st.floats(0, 1))
    def fork(self, data: st.DataObject, share: float) -> None:
        table, ids = data.draw(st.sampled_from(self.running))
        length = int(share * len(ids))
        self.running.append((table.fork(length), ids[:length]))

    @rule(num_pages=st.integers(1, 12))
    def evict(self, num_pages: int) -> None:
        expected = min(num_pages, self.cache.num_evictable)
        assert self.cache.evict(num_pages) == expected

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.published.clear()

    @invariant()
    def nothing_is_lost(self) -> None:
        for table, ids in self.running:
            assert stored(table) == hashes(ids)
        for ids in self.published:
            found = self.cache.match([*ids, 2])
            assert stored(found) == hashes(ids)[: found.length]
            found.close()
        self.cache.check_integrity()
        self.cache.pool.check_integrity([self.cache.pages(), *(table.pages for table, _ in self.running)])


Cache.TestCase.settings = settings(max_examples=settings.default.max_examples // 10, stateful_step_count=25)
TestCache = Cache.TestCase


@given(prompts, st.data())
@settings(max_examples=settings.default.max_examples // 5)
def test_any_earlier_position_is_found_without_recomputation(prompt: list[int], data: st.DataObject) -> None:
    cache = make()
    compute(cache, prompt)
    position = data.draw(st.integers(0, len(prompt)))
    table = cache.match([*prompt[:position], 2])
    assert table.length == position
    assert stored(table) == hashes(prompt)[:position]
