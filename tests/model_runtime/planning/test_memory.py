"""A plan's bytes are those of the real tensors and of a real process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.model_runtime.planning.conftest import small_config
from v32.model_runtime.cache.pages import KVLayout, PagePool
from v32.model_runtime.checkpoint.loader import load_checkpoint
from v32.model_runtime.checkpoint.source import embedded_checkpoint
from v32.model_runtime.model.sharding import Shard
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM
from v32.model_runtime.planning.hardware import Device, Rates
from v32.model_runtime.planning.memory import WeightForm, kv_token_bytes, weights
from v32.model_runtime.planning.plan import Model, Plan, plan_for
from v32.model_runtime.planning.tensors import grouped, part_of, published_tensors

RATES = Rates(1e10, 1e11, 1e-4, 1e8, "given")


def cpu_plan(source: Path, memory_bytes: int = 16 << 30, **options: int) -> Plan:
    return plan_for(Model.of(source), Device("cpu", "cpu", 1, memory_bytes), RATES, **options)  # type: ignore[arg-type]


def real_bytes(folder: Path) -> int:
    return sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())


def model_bytes(model: DeepseekV32ForCausalLM) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.nbytes for tensor in storages.values())


@pytest.mark.parametrize("is_fp8", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_published_form_has_the_tensors_of_the_model(is_fp8: bool, tied: bool) -> None:
    config = small_config(is_fp8=is_fp8, tie_word_embeddings=tied)
    with torch.device("meta"):
        places = DeepseekV32ForCausalLM(config, with_mtp=True).state_dict()
    planned = {tensor.name: tensor for tensor in published_tensors(config)}
    weights_only = {name for name in planned if not name.endswith("_scale_inv")}
    assert weights_only == set(places) - ({"lm_head.weight"} if tied else set())
    assert all(planned[name].shape == tuple(places[name].shape) for name in weights_only)


def test_the_published_model_has_its_published_size() -> None:
    _, config, groups, _ = Model.of("deepseek-v3.2")
    main = weights(groups, config, WeightForm.of(groups, config, "cuda"), kind="cuda")
    assert sum(part.num_values for part in main.parts) == pytest.approx(671.9e9, rel=1e-3)
    stored = sum(group.number * group.tensor.num_bytes for group in groups)
    assert stored == pytest.approx(689.5e9, rel=1e-3)  # with draft layer and duplicates: 642 GiB


@pytest.mark.parametrize("precision", ["fp8", "bfloat16", "float32"])
def test_a_plan_counts_the_bytes_of_files_and_of_the_loaded_model(precision: str, write: Callable[..., Path]) -> None:
    folder = write(small_config(), precision)
    plan = cpu_plan(folder)
    assert plan.checkpoint_bytes == real_bytes(folder)
    assert sum(part.stored_bytes for part in plan.parts) == plan.checkpoint_bytes
    assert plan.weight_bytes == model_bytes(load_checkpoint(folder))


def test_the_embedded_checkpoint_is_counted_exactly() -> None:
    folder = embedded_checkpoint()
    plan = cpu_plan(folder)
    assert plan.checkpoint_bytes == real_bytes(folder)
    assert plan.weight_bytes == model_bytes(load_checkpoint(folder))


def test_published_and_stored_tensors_are_the_same(write: Callable[..., Path]) -> None:
    config = small_config()
    of_files, of_config = Model.of(write(config)).groups, grouped(published_tensors(config), config)
    assert {(g.tensor.shape, g.tensor.dtype, g.number, g.part) for g in of_files} == {
        (g.tensor.shape, g.tensor.dtype, g.number, g.part) for g in of_config
    }


def test_the_cache_is_counted_as_the_pool_allocates() -> None:
    config = small_config()
    pool = PagePool(KVLayout.of_model(config), 1 << 20)
    allocated = sum(layer.records.nbytes + layer.index_keys.nbytes for layer in pool.layers)
    assert allocated == pool.capacity * 64 * kv_token_bytes(config, torch.float32)


@settings(max_examples=settings.default.max_examples // 5)
@given(
    count=st.integers(1, 8),
    heads=st.integers(8, 24),
    width=st.integers(8, 700),
    experts=st.integers(2, 5),
    is_fp8=st.booleans(),
)
def test_ranks_hold_every_byte_and_the_last_the_most(
    count: int, heads: int, width: int, experts: int, is_fp8: bool
) -> None:
    config = small_config(
        num_attention_heads=heads,
        intermediate_size=width,
        moe_intermediate_size=width,
        n_routed_experts=4 * experts,
        n_group=4,
        is_fp8=is_fp8,
    )
    form = WeightForm(torch.float32, dequantize=is_fp8, has_fp8=is_fp8)
    groups = grouped(published_tensors(config), config)
    whole = {part.name: part.num_values for part in weights(groups, config, form).parts}
    ranks = [weights(groups, config, form, Shard(rank, count)) for rank in range(count)]
    assert max(ranks, key=lambda rank: rank.loaded_bytes).loaded_bytes == ranks[-1].loaded_bytes
    held = {name: [rank.part(name).num_values for rank in ranks] for name in whole}
    assert sum(held["routed experts"]) == whole["routed experts"]
    assert sum(held["output head"]) == whole["output head"]
    assert sum(held["dense feed-forward"]) == whole["dense feed-forward"]
    for tensor in published_tensors(config):
        parts = [Shard(rank, count).part(tensor.name, tensor.shape, config) for rank in range(count)]
        is_shared = part_of(tensor.name, config) != "draft layers" and not tensor.name.endswith("_scale_inv")
        if is_shared and any(part and part.num_values < tensor.num_values for part in parts):
            assert sum(part.num_values for part in parts if part) == tensor.num_values, tensor.name


PEAK = """
import pathlib, re, sys, torch
from v32.model_runtime import load_model
from v32.model_runtime.checkpoint.loader import load_checkpoint
from v32.model_runtime.engine import Engine
from v32.model_runtime.generators.generator import SamplingParams
import v32.model_runtime.chat, v32.model_runtime.grammar, v32.model_runtime.encoding
engine = Engine(load_checkpoint(sys.argv[1]))
ids = torch.randint(2, engine.config.vocab_size, (int(sys.argv[2]),)).tolist()
engine.add(ids, SamplingParams(temperature=0.0, max_new_tokens=2))
while engine.has_work:
    engine.step()
# Not ru_maxrss: it begins with what the parent process had.
print(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp8", "bfloat16", "float32"])
def test_the_planned_peak_is_the_measured_peak(precision: str, write: Callable[..., Path]) -> None:
    config = small_config(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=2048,
        moe_intermediate_size=512,
        num_hidden_layers=4,
        n_routed_experts=8,
        q_lora_rank=256,
        kv_lora_rank=256,
        index_topk=256,
    )
    folder = write(config, precision, 5 * 10**9)
    run = subprocess.run([sys.executable, "-c", PEAK, str(folder), "1024"], capture_output=True, text=True, check=True)
    plan = cpu_plan(folder, context=1024)
    assert plan.needed_bytes == pytest.approx(int(run.stdout) * 1024, rel=0.1)
