"""The processes of a tensor-parallel model: started here, watched, and ended with their leader.

load_shards ─▶ starts N-1 processes that `follow` ─▶ each loads its part, then repeats what rank 0 does
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from v32.model_runtime.cache.block_table import BlockTable
from v32.model_runtime.cache.pages import KVLayout, PagePool
from v32.model_runtime.checkpoint.shard_loader import load_shard
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.engine import Engine
from v32.model_runtime.engine.paged_attention import PagedAttention, Segment
from v32.model_runtime.model.attention import FullAttention
from v32.model_runtime.model.parallel import Logits, ParallelForCausalLM, Pass, RankError, Ranks
from v32.model_runtime.model.sharding import Shard

_START_SECONDS = 3600.0
_END_SECONDS = 5.0
_RANK, _COUNT, _PORT = "V32_RANK", "V32_RANKS", "V32_PORT"


def load_shards(
    folder: Path, num_ranks: int, *, device: str = "cpu", dtype: torch.dtype | None = None, kv_dtype: Any = None
) -> ParallelForCausalLM:
    """Rank 0 of `num_ranks`, with the others started and loaded. `close_ranks` or this process's end ends them."""
    Shard(0, num_ranks).check(DeepseekV32Config.from_dir(folder))
    threads = max(1, torch.get_num_threads() // num_ranks)
    torch.set_num_threads(threads)  # the same on every rank: equal inputs have to give equal bits
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=_START_SECONDS), wait_for_workers=False)
    processes = _Processes(store.port, num_ranks, threads)
    try:
        processes.wait_until(store, "here")
        ranks = Ranks(store, Shard(0, num_ranks))
        ranks.explain = processes.explain
        ranks.send((str(folder), device, dtype, kv_dtype))
        model = load_shard(folder, ranks, device=device, dtype=dtype)
        processes.wait_until(store, "loaded")
    except BaseException:
        processes.end()
        raise
    model.processes = processes  # type: ignore[assignment]
    return model


def load_parallel_engine(
    folder: Path,
    num_ranks: int,
    *,
    dtype: torch.dtype | None = None,
    kv_dtype: torch.dtype | None = None,
    **options: Any,
) -> Engine:
    """An engine on rank 0, `options` as `Engine` has them; closing it ends the others."""
    model = load_shards(folder, num_ranks, dtype=dtype, kv_dtype=kv_dtype)
    engine = Engine(model, kv_dtype=kv_dtype, on_close=partial(close_ranks, model), **options)
    model.watch(engine.pool)
    return engine


def close_ranks(model: ParallelForCausalLM) -> None:
    """Let the other ranks end; safe to call twice, or after a failure."""
    processes: _Processes | None = getattr(model, "processes", None)
    if processes is not None and model.ranks is not None:
        try:
            if model.ranks.failure is None and not processes.dead():
                model.ranks.send(None)
        except RankError:
            pass
        processes.end()
        model.ranks.failure = model.ranks.failure or "the model is closed"


class _Processes:
    """Ranks 1 to N-1."""

    def __init__(self, port: int, num_ranks: int, threads: int) -> None:
        common = os.environ | {_COUNT: str(num_ranks), _PORT: str(port), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", "from v32.model_runtime.ranks import follow; follow()"]
        self.all = [
            subprocess.Popen(command, env=common | {_RANK: str(rank)}, stdin=subprocess.DEVNULL)
            for rank in range(1, num_ranks)
        ]
        atexit.register(self.end)

    def dead(self) -> list[str]:
        codes = [(rank, process.poll()) for rank, process in enumerate(self.all, 1)]
        return [f"rank {rank} has ended with code {code}" for rank, code in codes if code is not None]

    def explain(self) -> str:
        time.sleep(0.2)  # a broken connection is seen before the end of the process
        return ", ".join(self.dead()) or f"a rank has not answered within its time, of {len(self.all) + 1}"

    def end(self) -> None:
        atexit.unregister(self.end)
        deadline = time.monotonic() + _END_SECONDS
        for process in self.all:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def wait_until(self, store: dist.Store, key: str) -> None:
        """All have said `key` ("here", "loaded"). Raises `RankError` if one ends before."""
        keys = [f"{key}/{rank}" for rank in range(1, len(self.all) + 1)]
        while not store.check(keys):
            if dead := self.dead():
                raise RankError(f"{', '.join(dead)} before its part was loaded; its own message stands above")
            time.sleep(0.02)


def follow() -> None:
    """The life of a rank above 0: join, load, compute what rank 0 says until it has no more."""
    rank, num_ranks, port = (int(os.environ[name]) for name in (_RANK, _COUNT, _PORT))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=_START_SECONDS))
    store.set(f"here/{rank}", "")
    try:
        ranks = Ranks(store, Shard(rank, num_ranks))
        folder, device, dtype, kv_dtype = ranks.receive()
        model = load_shard(Path(folder), ranks, device=device, dtype=dtype)
        store.set(f"loaded/{rank}", "")
        _Follower(model, ranks, kv_dtype).serve()
    except RankError:
        os._exit(1)  # rank 0 has gone, or says what happened


class _Follower:
    """Repeats rank 0's passes over pages of its own, which have the same numbers."""

    def __init__(self, model: ParallelForCausalLM, ranks: Ranks, kv_dtype: torch.dtype | None) -> None:
        weight = model.model.embed_tokens.weight
        layout = KVLayout.of_model(model.config, kv_dtype or weight.dtype, weight.device)
        self.model, self.ranks, self.device = model, ranks, weight.device
        self.pool = PagePool(layout, 1 << 62)  # rank 0 keeps the budget

    @torch.inference_mode()
    def serve(self) -> None:
        while (message := self.ranks.receive()) is not None:
            if isinstance(message, Logits):
                self.model.compute_logits(message.hidden.to(self.device))
            else:
                self._run(message)

    def _run(self, work: Pass) -> None:
        ids, positions = (torch.tensor(values, device=self.device) for values in (work.input_ids, work.positions))
        topk = self.model.config.index_topk
        if work.segments is None:
            self.model(ids, positions, FullAttention(work.lengths, topk))
            return
        pages = [page for segment in work.segments for page in segment[0]]
        self.pool.ensure(1 + max([*pages, *(new for _, new in work.copied_pages)]))
        for page, new in work.copied_pages:
            self.pool.copy_rows(page, new)
        segments = [Segment(self._table(held), start, number) for held, start, number in work.segments]
        self.model(ids, positions, PagedAttention(self.pool, segments, topk))

    def _table(self, pages: list[int]) -> BlockTable:
        table = BlockTable(self.pool)
        for index, page in enumerate(pages):
            table._set_page(index, page)
        return table
