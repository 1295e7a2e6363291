"""PrefixCache: it finds the longest prefix there is, holds exactly its pages, and forgets the least used first."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=60, deadline=None)
@given(st.lists(prompts, min_size=1, max_size=8))
def test_every_prompt_reuses_its_longest_common_prefix(history: list[list[int]]) -> None:
    cache = make()
    for index, prompt in enumerate(history):
        longest = max((common(prompt, earlier) for earlier in history[:index]), default=0)
        assert compute(cache, prompt) == min(longest, len(prompt) - 1)


@settings(max_examples=30, deadline=None)
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
