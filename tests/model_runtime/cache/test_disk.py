"""KV on disk: what comes back is what was written, bit for bit; anything else is refused with its reason."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from v32.model_runtime.cache import BlockTable, KVLayout, PagePool, read_kv, write_kv
from v32.model_runtime.errors import KVFileError

LAYOUT = KVLayout(num_layers=3, kv_lora_rank=5, qk_rope_head_dim=2, index_head_dim=4)
IDENTITY = {"fingerprint": "abc", "encoder": "tok/1", "dtype": "float32"}


def table_of(num_tokens: int, layout: KVLayout = LAYOUT, seed: int = 0) -> BlockTable:
    """Random content over pages that do not lie in one piece."""
    pool = PagePool(layout, 40 * layout.page_bytes)
    generator = torch.Generator().manual_seed(seed)
    for layer in pool.layers:
        layer.records.copy_(torch.randn(layer.records.shape, generator=generator))
        layer.index_keys.copy_(torch.randn(layer.index_keys.shape, generator=generator))
    table, between = BlockTable(pool), BlockTable(pool)
    while table.length < num_tokens:
        step = min(64, num_tokens - table.length)
        table.reserve(step)
        table.advance(step)
        between.reserve(64)
        between.advance(64)
    return table


def content(table: BlockTable) -> list[torch.Tensor]:
    slots = table.slots(0, table.length)
    return [rows[slots] for layer in table.pool.layers for rows in (layer.records, layer.index_keys)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 300])
def test_what_comes_back_is_what_was_written(tmp_path: Path, num_tokens: int, dtype: torch.dtype) -> None:
    table = table_of(num_tokens, replace(LAYOUT, dtype=dtype))
    ids = list(range(7, 7 + num_tokens))
    write_kv(tmp_path / "a.kv", [*ids, 99], table, IDENTITY)
    pool = PagePool(table.pool.layout, 20 * table.pool.layout.page_bytes)
    read_ids, read = read_kv(tmp_path / "a.kv", pool, IDENTITY)
    assert read_ids == ids
    assert all(torch.equal(a, b) for a, b in zip(content(table), content(read), strict=True))
    pool.check_integrity([read.pages])


def test_only_the_owner_may_read_it_and_nothing_else_is_left(tmp_path: Path) -> None:
    for seed in range(2):
        write_kv(tmp_path / "a.kv", range(70), table_of(70, seed=seed), IDENTITY)
        assert stat.S_IMODE((tmp_path / "a.kv").stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["a.kv"]
    pool = PagePool(LAYOUT, 20 * LAYOUT.page_bytes)
    _, read = read_kv(tmp_path / "a.kv", pool, IDENTITY)
    assert torch.equal(content(read)[0], content(table_of(70, seed=1))[0])  # the newer one


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kv(tmp_path / "a.kv", range(70), table_of(70), IDENTITY)
    before = (tmp_path / "a.kv").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(KVFileError, match="No space left on device; the session will be computed again"):
        write_kv(tmp_path / "a.kv", range(90), table_of(90), IDENTITY)
    assert (tmp_path / "a.kv").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.kv"]
    with pytest.raises(KVFileError, match="No such file"):
        write_kv(tmp_path / "none" / "a.kv", range(70), table_of(70), IDENTITY)


@pytest.mark.parametrize(
    ("layout", "identity", "reason"),
    [
        (LAYOUT, {**IDENTITY, "fingerprint": "xyz"}, "computed with fingerprint 'abc', this is 'xyz'"),
        (LAYOUT, {**IDENTITY, "encoder": "tok/2"}, "encoder 'tok/1', this is 'tok/2'"),
        (LAYOUT, {**IDENTITY, "dtype": "bfloat16"}, "dtype 'float32', this is 'bfloat16'"),
        (LAYOUT, {**IDENTITY, "numerics": "float"}, "numerics None, this is 'float'"),
        (replace(LAYOUT, dtype=torch.bfloat16), IDENTITY, "kv_dtype 'float32', this is 'bfloat16'"),
        (replace(LAYOUT, num_layers=4), IDENTITY, "num_layers 3, this is 4"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, layout: KVLayout, identity: dict[str, str], reason: str) -> None:
    write_kv(tmp_path / "a.kv", range(70), table_of(70), IDENTITY)
    pool = PagePool(layout, 20 * layout.page_bytes)
    with pytest.raises(KVFileError, match=reason):
        read_kv(tmp_path / "a.kv", pool, identity)
    assert pool.num_used == 0


@given(st.data())
def test_any_damage_is_noticed_and_takes_no_page(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("kv") / "a.kv"
    write_kv(path, range(70), table_of(70), IDENTITY)
    whole = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "longer"]))
    if kind == "flip":
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        whole += b"\0" * data.draw(st.integers(1, 100))
    path.write_bytes(whole)
    pool = PagePool(LAYOUT, 20 * LAYOUT.page_bytes)
    with pytest.raises(KVFileError):
        read_kv(path, pool, IDENTITY)
    assert pool.num_used == 0
    pool.check_integrity([])


def test_a_pool_that_is_too_small_keeps_all_its_pages(tmp_path: Path) -> None:
    write_kv(tmp_path / "a.kv", range(300), table_of(300), IDENTITY)
    pool = PagePool(LAYOUT, 3 * LAYOUT.page_bytes)
    with pytest.raises(MemoryError):
        read_kv(tmp_path / "a.kv", pool, IDENTITY)
    assert pool.num_used == 0
