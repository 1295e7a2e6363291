"""A model cut over processes computes what one process computes, and ends with a clear error when one of them dies."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from v32.model_runtime.chat import ChatModel
from v32.model_runtime.checkpoint.index import CheckpointIndex
from v32.model_runtime.checkpoint.loader import load_checkpoint
from v32.model_runtime.checkpoint.shard_loader import read_shard
from v32.model_runtime.checkpoint.writer import write_checkpoint
from v32.model_runtime.config import DeepseekV32Config, YarnScaling
from v32.model_runtime.engine import Engine
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.generators.generator import SamplingParams, Token
from v32.model_runtime.loading import load_model
from v32.model_runtime.model.parallel import ParallelForCausalLM, RankError
from v32.model_runtime.model.sharding import Shard
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM
from v32.model_runtime.ranks import close_ranks, load_shards
from v32.model_runtime.scoring import full_logits

IDS = torch.randint(0, 211, (90,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP8, with widths that do not divide evenly: some parts begin inside of a block, the vocabulary is odd."""
    config = DeepseekV32Config(
        vocab_size=211,
        hidden_size=160,
        intermediate_size=300,
        moe_intermediate_size=256,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        num_attention_heads=6,
        q_lora_rank=48,
        kv_lora_rank=32,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=24,
        index_n_heads=16,
        index_head_dim=32,
        index_topk=16,
        n_routed_experts=10,
        num_experts_per_tok=3,
        n_group=2,
        topk_group=2,
        rope_scaling=YarnScaling(40.0, 64, mscale_all_dim=1.0),
        max_position_embeddings=2560,
    )
    torch.manual_seed(0)
    model = DeepseekV32ForCausalLM(config).requires_grad_(False)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    path = tmp_path_factory.mktemp("parallel") / "model"
    write_checkpoint(path, config, model.state_dict(), precision="fp8")
    return path


@pytest.fixture
def load(folder: Path) -> Iterator[object]:
    models: list[ParallelForCausalLM] = []

    def load(num_ranks: int) -> ParallelForCausalLM:
        models.append(load_shards(folder, num_ranks))
        return models[-1]

    yield load
    for model in models:
        close_ranks(model)


def continuations(model: DeepseekV32ForCausalLM, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy tokens of all prompts together, then of the first again: from the prefix cache, with copied pages."""
    engine = Engine(model, max_batch_tokens=32, max_sequences=8)
    if isinstance(model, ParallelForCausalLM):
        model.watch(engine.pool)
    results = []
    for group in (prompts, [prompts[0], prompts[0] + [7]], [prompts[0]]):
        sequences = [engine.add(list(ids), SamplingParams(temperature=0.0, max_new_tokens=24)) for ids in group]
        while engine.has_work:
            engine.step()
        results += [sequence.token_ids for sequence in sequences]
    engine.check_integrity()
    return results


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_compute_what_one_process_computes(num_ranks: int, folder: Path, load) -> None:  # type: ignore[no-untyped-def]
    whole, parallel = load_checkpoint(folder), load(num_ranks)
    torch.testing.assert_close(full_logits(parallel, IDS), full_logits(whole, IDS), atol=2e-5, rtol=1e-4)
    prompts = [IDS[:70], IDS[20:40], IDS[50:90]]
    assert continuations(parallel, prompts) == continuations(whole, prompts)


@pytest.mark.slow
def test_a_dead_rank_ends_the_work_with_its_name(load) -> None:  # type: ignore[no-untyped-def]
    parallel = load(2)
    full_logits(parallel, IDS)
    process = parallel.processes.all[0]
    os.kill(process.pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 has ended with code -9.*load the model again"):
        full_logits(parallel, IDS)
    with pytest.raises(RankError):
        full_logits(parallel, IDS)
    close_ranks(parallel)
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_hung_rank_ends_the_work_within_the_stated_time(load, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("V32_RANK_SECONDS", "3")
    parallel = load(2)
    full_logits(parallel, IDS)
    process = parallel.processes.all[0]
    os.kill(process.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(RankError, match=r"a rank of 2 has died, or has not answered within its time.*load the model"):
        full_logits(parallel, IDS)
    close_ranks(parallel)
    assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_more_ranks_than_heads_are_refused_before_anything_waits(folder: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="7 ranks cannot share num_attention_heads 6"):
        load_shards(folder, 7)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel is 0; it must be 1 or more"),
        ({"tensor_parallel": 2, "speculative": True}, "2 processes work without speculative= only"),
        ({"tensor_parallel": 2, "source": "vllm+http://127.0.0.1:1"}, "computes elsewhere; run this in one process"),
    ],
)
def test_what_ranks_cannot_do_is_said_before_loading(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(**options)


@pytest.mark.slow
def test_load_model_starts_the_ranks_and_ends_them() -> None:
    whole, parallel = load_model(), load_model(tensor_parallel=2)
    params = SamplingParams(temperature=0.0, max_new_tokens=12)

    async def ids(model: ChatModel) -> list[int]:
        stream = model.generator.generate([0, 5, 9, 30], params)
        found = [event.id async for event in stream if isinstance(event, Token)]
        await model.aclose()
        return found

    assert asyncio.run(ids(parallel)) == asyncio.run(ids(whole))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_a_rank_reads_its_part_and_nothing_else(num_ranks: int, folder: Path) -> None:
    """Counted by the system: what this process reads beside config.json."""
    config = DeepseekV32Config.from_dir(folder)
    read_shard(CheckpointIndex.from_dir(folder), Shard(), torch.device("cpu"), torch.float32)  # imports what it needs
    for rank in range(num_ranks):
        index, shard = CheckpointIndex.from_dir(folder), Shard(rank, num_ranks)
        assert index.fingerprint  # rank 0 compares it
        before = _bytes_read()
        read_shard(index, shard, torch.device("cpu"), torch.float32)
        assert 0 <= _bytes_read() - before - _part_bytes(index, shard, config) <= 4096


def _part_bytes(index: CheckpointIndex, shard: Shard, config: DeepseekV32Config) -> int:
    """Of a rank's part of all tensors; the part of an FP8 matrix is rounded out to the borders of its blocks."""
    total = 0
    for name, info in index.items():
        part = shard.part(name, info.shape, config) if not name.endswith("_scale_inv") else None
        if part is None:
            continue
        scale = index.get(name + "_scale_inv")
        spans = [span for span in part if span is not None]
        starts = [span.start // 128 * 128 if scale else span.start for span in spans]
        total += math.prod(span.stop - start for span, start in zip(spans, starts)) * info.dtype.itemsize
        if scale:
            blocks = [-(-span.stop // 128) - start // 128 for span, start in zip(spans, starts)]
            total += math.prod(blocks) * scale.dtype.itemsize
    return total


def _bytes_read() -> int:
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(text.split("rchar: ")[1].split()[0])


LEADER = """
import sys, time
from pathlib import Path
from v32.model_runtime.ranks import load_shards
model = load_shards(Path(sys.argv[1]), 2)
print(model.processes.all[0].pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_the_other_ranks_end_with_a_killed_leader(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LEADER, str(folder)], stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        follower = int(leader.stdout.readline())
        leader.kill()
    deadline = time.monotonic() + 60
    while _is_running(follower) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(follower)


def _is_running(pid: int) -> bool:
    """False for a zombie, which waits for whoever has adopted it."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
