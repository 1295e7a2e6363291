"""PagePool and BlockTable: every position keeps its content, whatever is forked, cut, written and freed around it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from v32.model_runtime.cache import PAGE_SIZE, BlockTable, KVLayout, PagePool
from v32.model_runtime.cache.pages import FP8_RECORDS, HUGE_PAGE

LAYOUT = KVLayout(num_layers=2, kv_lora_rank=3, qk_rope_head_dim=2, index_head_dim=4)


def append(table: BlockTable, values: list[int]) -> None:
    """Write one number a position into every layer, as a forward pass does."""
    table.reserve(len(values))
    slots = table.slots(table.length, table.length + len(values))
    for index, layer in enumerate(table.pool.layers):
        layer.records[slots] = torch.tensor(values)[:, None] + torch.full((1, 5), index * 0.5)
        layer.index_keys[slots] = torch.tensor(values)[:, None] + torch.full((1, 4), index * 0.5)
    table.advance(len(values))


def content(table: BlockTable) -> list[int]:
    """The numbers, read back; both ways of addressing and all layers agree."""
    slots = table.slots(0, table.length)
    for index, layer in enumerate(table.pool.layers):
        expected = table.pool.layers[0].latent[slots][:, :1] + index * 0.5
        assert torch.equal(layer.records[slots], expected.expand(-1, 5))
        assert torch.equal(layer.k_pe[slots], expected.expand(-1, 2))
        assert torch.equal(layer.index_keys[slots], expected.expand(-1, 4))
        if table.length:
            assert torch.equal(layer.records[table.rows(table.length)], layer.records[slots])
    return table.pool.layers[0].latent[slots][:, 0].int().tolist()


class Tables(RuleBasedStateMachine):
    """Random use of several tables over a small pool, against plain lists."""

    @initialize()
    def start(self) -> None:
        self.pool = PagePool(LAYOUT, 12 * LAYOUT.page_bytes)
        self.tables: list[tuple[BlockTable, list[int]]] = []
        self.counter = 0

    @rule()
    def open(self) -> None:
        self.tables.append((BlockTable(self.pool), []))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), num_tokens=st.sampled_from([1, 2, 63, 64, 65, 130]))
    def write(self, data: st.DataObject, num_tokens: int) -> None:
        table, expected = data.draw(st.sampled_from(self.tables))
        values = list(range(self.counter, self.counter + num_tokens))
        self.counter += num_tokens
        needed, free = table.pages_needed(num_tokens), self.pool.num_free
        if needed > free:
            with pytest.raises(MemoryError):
                append(table, values)
            assert self.pool.num_free == free
        else:
            append(table, values)
            assert self.pool.num_free == free - needed
            expected += values

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), share=st.floats(0, 1))
    def fork(self, data: st.DataObject, share: float) -> None:
        table, expected = data.draw(st.sampled_from(self.tables))
        length = int(share * len(expected))
        free = self.pool.num_free
        self.tables.append((table.fork(length), expected[:length]))
        assert self.pool.num_free == free

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), share=st.floats(0, 1))
    def truncate(self, data: st.DataObject, share: float) -> None:
        table, expected = data.draw(st.sampled_from(self.tables))
        del expected[int(share * len(expected)) :]
        table.truncate(len(expected))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.tables.pop(index)[0].close()

    @invariant()
    def nothing_is_lost(self) -> None:
        for table, expected in self.tables:
            assert content(table) == expected
        self.pool.check_integrity(table.pages for table, _ in self.tables)


Tables.TestCase.settings = settings(max_examples=settings.default.max_examples // 6, stateful_step_count=25)
TestTables = Tables.TestCase


def test_the_pool_grows_on_demand_up_to_its_budget() -> None:
    pool = PagePool(LAYOUT, 100 * LAYOUT.page_bytes)
    table = BlockTable(pool)
    assert pool.capacity < 100
    append(table, list(range(100 * PAGE_SIZE)))
    assert pool.capacity == 100
    assert content(table) == list(range(100 * PAGE_SIZE))
    with pytest.raises(MemoryError, match="1 tokens need 1 pages, 0 are free"):
        table.reserve(1)
    with pytest.raises(MemoryError, match="raise kv_budget_bytes"):
        pool.allocate()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8_RECORDS])
def test_a_layer_beyond_a_huge_page_grows_without_losing_rows(dtype: torch.dtype) -> None:
    layout = KVLayout(1, 512, 64, 128, dtype)
    pool = PagePool(layout, 200 * layout.page_bytes)
    table = BlockTable(pool)
    table.reserve(10 * PAGE_SIZE)
    before = pool.layers[0]
    assert before.index_keys.nbytes + before.records.nbytes == pool.capacity * layout.page_bytes
    before.records.view(torch.uint8).random_()
    before.index_keys.view(torch.uint8).random_()
    table.reserve(100 * PAGE_SIZE)
    after = pool.layers[0]
    assert after.records.nbytes + after.index_keys.nbytes > HUGE_PAGE
    for old, new in ((before.records, after.records), (before.index_keys, after.index_keys)):
        assert new.dtype == old.dtype
        assert len(new) > len(old)
        assert torch.equal(new[: len(old)].view(torch.uint8), old.view(torch.uint8))


def test_a_lone_sequence_lies_in_one_piece() -> None:
    pool = PagePool(LAYOUT, 50 * LAYOUT.page_bytes)
    other, table = BlockTable(pool), BlockTable(pool)
    append(other, [0] * 100)
    append(table, list(range(1000)))
    assert table.rows(1000) == slice(2 * PAGE_SIZE, 2 * PAGE_SIZE + 1000)


def test_lost_and_doubly_held_pages_are_noticed() -> None:
    pool = PagePool(LAYOUT, 10 * LAYOUT.page_bytes)
    table = BlockTable(pool)
    append(table, [1] * 70)
    pool.check_integrity([table.pages])
    for holders in ([], [table.pages, table.pages], [table.pages[:1]]):
        with pytest.raises(AssertionError, match=r"page [01] is counted"):
            pool.check_integrity(holders)
    with pytest.raises(ValueError, match=r"length 71 is outside of the table's 0\.\.70"):
        table.truncate(71)
