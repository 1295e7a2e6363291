"""A budget holds: by its own arithmetic, and by the memory of a real process with a checkpoint several times larger."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from v32.kernels.native import library
from v32.model_runtime.checkpoint import load_checkpoint, write_checkpoint
from v32.model_runtime.checkpoint.source import embedded_checkpoint
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.engine import Engine
from v32.model_runtime.errors import MemoryBudgetError
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.loading import load_model
from v32.model_runtime.memory_budget import divide
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

SMALL = DeepseekV32Config(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=256,
    moe_intermediate_size=128,
    num_hidden_layers=4,
    num_nextn_predict_layers=0,
    first_k_dense_replace=1,
    num_attention_heads=4,
    q_lora_rank=64,
    kv_lora_rank=32,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    index_n_heads=16,
    index_head_dim=32,
    index_topk=64,
    n_routed_experts=32,
    num_experts_per_tok=4,
    n_group=1,
    topk_group=1,
    rope_scaling=None,
    max_position_embeddings=8192,
)
LARGE = dataclasses.replace(SMALL, num_hidden_layers=8, moe_intermediate_size=768, hidden_size=256)
"""56 MB, of which 7 layers x 32 experts are 51."""


def write(folder: Path, config: DeepseekV32Config) -> Path:
    torch.manual_seed(0)
    with torch.device("meta"):
        model = DeepseekV32ForCausalLM(config)
    state = {}
    for name, tensor in model.state_dict().items():
        is_vector = tensor.dim() == 1
        state[name] = (
            torch.full(tensor.shape, float(not name.endswith("bias"))) if is_vector else torch.randn(tensor.shape)
        )
        state[name] *= 1 if is_vector else tensor.shape[-1] ** -0.5
    write_checkpoint(folder, config, state, precision="fp8", max_shard_bytes=20 << 20)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_checkpoint() / name, folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small"), SMALL)


@settings(max_examples=settings.default.max_examples // 6)
@given(budget=st.integers(1 << 20, 64 << 20), context=st.none() | st.integers(64, 8192), batch=st.integers(1, 600))
@example(budget=1 << 20, context=None, batch=42)
def test_the_shares_are_within_the_budget(small: Path, budget: int, context: int | None, batch: int) -> None:
    try:
        shares = divide(small, budget, max_context=context, max_batch_tokens=batch)
    except MemoryBudgetError as error:
        smallest = int(re.search(r"smallest that works is (\d+) MiB", str(error))[1])  # type: ignore[index]
        assert smallest << 20 > budget
        divide(small, smallest << 20, max_context=context, max_batch_tokens=batch)
        return
    for num_pages in range(shares.num_pages + 1):
        places = shares.num_places(num_pages)
        assert 1 <= places <= shares.num_experts == 96
        taken = places * shares.place_bytes + num_pages * shares.page_bytes
        assert shares.resident_bytes + shares.workspace_bytes + taken <= budget
    assert context is None or shares.num_pages >= -(-context // 64)
    assert shares.max_batch_tokens <= batch


@pytest.mark.slow
def test_experts_give_way_to_keys_and_values(small: Path) -> None:
    shares = divide(small, 12 << 20)
    assert shares.expert_places is not None
    model = load_checkpoint(small, expert_places=shares.expert_places)
    engine = Engine(model, kv_budget_bytes=shares.kv_budget_bytes, max_batch_tokens=shares.max_batch_tokens)
    cache = model.expert_cache
    assert cache is not None
    shares.watch(engine.pool, cache)
    whole = Engine(load_checkpoint(small))
    places = [cache.num_places]
    for length in (20, 700, 1400):
        ids = torch.randint(0, 1024, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        said = []
        for each in (engine, whole):
            sequence = each.add(ids, SamplingParams(temperature=0.0, max_new_tokens=6))
            while each.has_work:
                each.step()
            said.append(sequence.token_ids)
        assert said[0] == said[1]
        places.append(cache.num_places)
        assert cache.num_places == shares.num_places(engine.pool.capacity)
        engine.check_integrity()
    assert places[-1] < places[0]


def test_a_budget_for_everything_loads_everything(small: Path) -> None:
    shares = divide(small, 1 << 30)
    assert shares.expert_places is None
    assert shares.max_batch_tokens == 512


def test_too_small_a_budget_is_refused_before_weights_are_read(small: Path) -> None:
    with pytest.raises(
        MemoryBudgetError, match=r"a memory budget of 1 MiB is too small for .*: the smallest that works"
    ):
        load_model(small, memory_budget="1MiB")


@pytest.mark.parametrize("option", [{"speculative": True}, {"tensor_parallel": 2}, {"dequantize": True}])
def test_options_that_need_all_weights_are_refused(small: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"leave out {next(iter(option))}="):
        load_model(small, memory_budget="8MiB", **option)


RUN = """
import asyncio, json, sys
from v32.model_runtime import load_model, SamplingParams

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) << 10

async def ids_of(model, length):
    ids = [7 + i * i % 1000 for i in range(length)]
    params = SamplingParams(temperature=0.0, max_new_tokens=24)
    return [event.id async for event in model.generator.generate(ids, params) if hasattr(event, "id")]

async def main():
    tiny = load_model()  # the program, warm
    await ids_of(tiny, 100)
    await tiny.aclose()
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    model = load_model(sys.argv[1], memory_budget=int(sys.argv[2]) or None, max_batch_tokens=64)
    said = [await ids_of(model, length) for length in (5, 300, 600)]
    print(json.dumps({"said": said, "bytes": status("VmHWM") - before}))
    await model.aclose()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("native", ["1", "0"])
def test_a_checkpoint_four_times_the_budget_says_the_same_within_it(tmp_path: Path, native: str) -> None:
    if native == "1" and library() is None:
        pytest.skip("no native kernels on this machine")
    folder = write(tmp_path / "large", LARGE)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    budget = size // 4

    def run(budget: int) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(folder), str(budget)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "V32_NATIVE": native},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    whole, bounded = run(0), run(budget)  # passes of the same sizes: PyTorch's products depend on them by rounding
    assert bounded["said"] == whole["said"]
    assert bounded["bytes"] <= budget
    assert whole["bytes"] > 3 * budget
