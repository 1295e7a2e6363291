"""The processes of a tensor-parallel model: started here or by torchrun, watched, and ended with their leader.

    load_shards ─▶ starts N-1 processes that `follow` ─▶ each loads its part, then repeats what rank 0 does
    torchrun    ─▶ starts all N; rank 0 comes to load_shards, the others `follow`

A rank that ends or hangs is a `RankError` on rank 0 within `STALL_SECONDS`, while parts are loaded as in every pass.
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

STALL_SECONDS = 60.0
"""How long one rank waits for another inside a pass, or for news of its loading; `V32_RANK_SECONDS` sets another."""
_START_SECONDS = 600.0
_END_SECONDS = 5.0
_PREFIX = "v32"


def load_shards(
    folder: Path, num_ranks: int, *, device: str = "cpu", dtype: torch.dtype | None = None, kv_dtype: Any = None
) -> ParallelForCausalLM:
    """Rank 0 of `num_ranks`, with the others started and loaded. `close_ranks` or this process's end ends them."""
    Shard(0, num_ranks).check(DeepseekV32Config.from_dir(folder))
    processes = _Launched(num_ranks) if Shard.launched().num_ranks > 1 else _Started(num_ranks)
    torch.set_num_threads(processes.threads)
    try:
        processes.wait_until("here", _START_SECONDS)
        ranks = Ranks(processes.store, Shard(0, num_ranks), _stall_seconds())
        ranks.explain = processes.explain
        # As many threads on every rank: equal inputs have to give equal bits.
        ranks.send((str(folder), device, dtype, kv_dtype, processes.threads))
        model = load_shard(folder, ranks, device=_own(device), dtype=dtype)
        processes.wait_until("loaded", _stall_seconds())
    except BaseException:
        processes.end()
        raise
    model.processes = processes  # type: ignore[assignment]
    return model


def parallel_engine(model: ParallelForCausalLM, **options: Any) -> Engine:
    """An engine on rank 0, `options` as `Engine` has them; closing it ends the others."""
    engine = Engine(model, on_close=partial(close_ranks, model), **options)
    model.watch(engine.pool)
    return engine


def close_ranks(model: ParallelForCausalLM) -> None:
    """Let the other ranks end; safe to call twice, or after a failure."""
    processes: _Ranks | None = getattr(model, "processes", None)
    if processes is not None and model.ranks is not None:
        try:
            if model.ranks.failure is None and not processes.dead():
                model.ranks.send(None)
        except RankError:
            pass
        processes.end()
        model.ranks.failure = model.ranks.failure or "the model is closed"


class _Ranks:
    """Ranks 1 to N-1 as rank 0 sees them, through the store where they say how far they are."""

    def __init__(self, store: dist.Store, num_ranks: int, threads: int) -> None:
        self.store, self.num_ranks, self.threads = store, num_ranks, threads

    def dead(self) -> list[str]:
        """Those known to have ended, and how."""
        return []

    def end(self) -> None:
        """See that they end; also those that hang."""

    def explain(self) -> str:
        time.sleep(0.2)  # a broken connection is seen before the end of the process
        return ", ".join(self.dead()) or f"a rank of {self.num_ranks} has died, or has not answered within its time"

    def wait_until(self, said: str, patience: float) -> None:
        """All have said it ("here", "loaded"). Raises `RankError` if one ends before, or is silent for so long."""
        started = time.monotonic()
        heard = dict.fromkeys(range(1, self.num_ranks), (0, started))
        while heard:
            now = time.monotonic()
            for rank, (news, since) in list(heard.items()):
                if self.store.check([f"{said}/{rank}"]):
                    del heard[rank]
                elif (count := self.store.add(f"news/{rank}", 0)) != news:
                    heard[rank] = count, now
                elif now - since > patience:
                    raise RankError(f"rank {rank} has been silent for {patience:.0f} s while its part was loaded")
            if dead := self.dead():
                raise RankError(f"{', '.join(dead)} before its part was loaded; its own message stands above")
            time.sleep(0.02)


class _Started(_Ranks):
    """Processes that rank 0 has started, for this machine's cores."""

    def __init__(self, num_ranks: int) -> None:
        timeout = timedelta(seconds=_START_SECONDS)
        store = dist.TCPStore("127.0.0.1", 0, None, True, timeout, wait_for_workers=False)
        super().__init__(dist.PrefixStore(_PREFIX, store), num_ranks, max(1, torch.get_num_threads() // num_ranks))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        place = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_PORT": store.port}
        common = os.environ | {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-c", "from v32.model_runtime.ranks import follow; follow()"]
        self.all = [
            subprocess.Popen(
                command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL
            )
            for rank in range(1, num_ranks)
        ]
        atexit.register(self.end)

    def dead(self) -> list[str]:
        codes = [(rank, process.poll()) for rank, process in enumerate(self.all, 1)]
        return [f"rank {rank} has ended with code {code}" for rank, code in codes if code is not None]

    def end(self) -> None:
        atexit.unregister(self.end)
        deadline = time.monotonic() + _END_SECONDS
        for process in self.all:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _Launched(_Ranks):
    """Processes that torchrun has started, and ends when one of them fails."""

    def __init__(self, num_ranks: int) -> None:
        here = Shard.launched()
        if here.rank != 0:
            raise RankError(f"rank {here.rank} of torchrun cannot lead: `follow` serves rank 0, which loads the model")
        if here.num_ranks != num_ranks:
            raise RankError(f"torchrun has started {here.num_ranks} processes; leave tensor_parallel={num_ranks} out")
        super().__init__(_join(), num_ranks, torch.get_num_threads())


def _join() -> dist.Store:
    """The store at MASTER_ADDR and MASTER_PORT, which is rank 0's or torchrun's."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=_START_SECONDS)))
    return dist.PrefixStore(_PREFIX, store)


def _own(device: str) -> torch.device:
    """This rank's device of a kind: each has its own GPU."""
    if torch.device(device).type != "cuda":
        return torch.device(device)
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(place)  # Triton launches where the current device is
    return place


def _stall_seconds() -> float:
    text = os.environ.get("V32_RANK_SECONDS", str(STALL_SECONDS))
    try:
        return float(text)
    except ValueError:
        raise RankError(f"V32_RANK_SECONDS is {text!r}; it must be a number of seconds") from None


def follow() -> None:
    """The life of a rank above 0: join, load, compute what rank 0 says until it has no more."""
    shard = Shard.launched()
    store = _join()
    store.set(f"here/{shard.rank}", "")
    try:
        ranks = Ranks(store, shard, _stall_seconds())
        folder, device, dtype, kv_dtype, threads = ranks.receive()
        torch.set_num_threads(threads)
        news = partial(store.add, f"news/{shard.rank}", 1)
        model = load_shard(Path(folder), ranks, device=_own(device), dtype=dtype, progress=news)
        store.set(f"loaded/{shard.rank}", "")
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
