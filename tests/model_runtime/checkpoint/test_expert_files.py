"""Experts read when tokens choose them: the same tokens as with all in memory, whatever few places there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import slow
from v32.kernels.native import library
from v32.model_runtime.checkpoint import CheckpointIndex, load_checkpoint
from v32.model_runtime.checkpoint.slots import ROUTED_EXPERT
from v32.model_runtime.engine import Engine
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.model.expert_cache import ExpertCache
from v32.model_runtime.model.moe import MoE
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=24)
PROMPTS = [torch.randint(0, 150, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (3, 20, 70)]


def generate(model: DeepseekV32ForCausalLM, *, native: bool, together: bool = True) -> list[list[int]]:
    model.model.uses_native = native
    engine = Engine(model, kv_budget_bytes=64 << 20)
    sequences = []
    for prompt in PROMPTS:
        sequences.append(engine.add(prompt, GREEDY))
        while engine.has_work and not together:
            engine.step()
    while engine.has_work:
        engine.step()
    return [sequence.token_ids for sequence in sequences]


def cache_of(model: DeepseekV32ForCausalLM) -> ExpertCache:
    block = model.model.layers[1].mlp
    assert isinstance(block, MoE)
    assert block.cached_experts is not None
    return block.cached_experts.cache


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["fp8", *slow("bfloat16", "float32")])
@pytest.mark.parametrize("places", [3, *slow(1, 8)])
def test_tokens_are_those_of_the_whole_model(
    write: Callable[..., Path], precision: str, places: int, native: bool
) -> None:
    if native and library() is None:
        pytest.skip("no native kernels on this machine")
    folder = write("model", precision=precision)
    whole, few = load_checkpoint(folder), load_checkpoint(folder, expert_places=places)
    assert (few.model.native is not None) == (library() is not None)
    expected = generate(whole, native=native)
    assert generate(few, native=native) == expected
    assert generate(few, native=native, together=False) == expected
    assert not [name for name, _ in few.named_parameters() if ROUTED_EXPERT.search(name)]


def test_native_states_are_bitwise_those_of_the_whole_model(write: Callable[..., Path]) -> None:
    """Waves of few experts add up in the order of all at once."""
    from v32.model_runtime.cache import BlockTable
    from v32.model_runtime.engine.paged_attention import PagedAttention, Segment

    if library() is None:
        pytest.skip("no native kernels on this machine")
    folder, states = write("model", precision="fp8"), []
    for places in (None, 8, 3, 1):
        model = load_checkpoint(folder, expert_places=places)
        engine = Engine(model, kv_budget_bytes=64 << 20)
        table = BlockTable(engine.pool)
        table.reserve(70)
        attention = PagedAttention(engine.pool, [Segment(table, 0, 70)], model.config.index_topk)
        with torch.inference_mode():
            states.append(model(torch.tensor(PROMPTS[2]), torch.arange(70), attention))
    assert all(torch.equal(state, states[0]) for state in states[1:])


def test_what_was_used_last_is_not_read_again(write: Callable[..., Path]) -> None:
    cache = cache_of(load_checkpoint(write("model", precision="fp8"), expert_places=3))
    for experts in ([0, 1, 2], [0], [3], [0, 2], [1]):
        cache.hold(1, experts)
    # 0 1 2 | 0 | 3 instead of 1 | 0 and 2 are there | 1 instead of 3
    assert (cache.num_misses, cache.num_hits) == (5, 3)
    cache.shrink(2)
    assert cache.num_places == 2
    cache.hold(1, [0, 1])


def test_a_place_holds_what_the_file_says(write: Callable[..., Path]) -> None:
    folder = write("model", precision="fp8")
    cache, index = cache_of(load_checkpoint(folder, expert_places=2)), CheckpointIndex.from_dir(folder)
    for expert in (7, 3, 5, 7):
        (weights,) = cache.hold(1, [expert])
        for name, tensor in zip(("gate", "up", "down"), weights[:3], strict=True):
            stored = index.read(f"model.layers.1.mlp.experts.{expert}.{name}_proj.weight")
            assert torch.equal(tensor.view(torch.uint8), stored.view(torch.uint8))


@pytest.mark.parametrize("native", [True, False])
def test_damage_is_told_when_the_expert_is_chosen(write: Callable[..., Path], native: bool) -> None:
    folder = write("model", precision="fp8")
    index = CheckpointIndex.from_dir(folder)
    for expert in range(8):
        info = index[f"model.layers.1.mlp.experts.{expert}.up_proj.weight"]
        with info.file.open("r+b") as stream:
            stream.seek(info.stop - 1)
            stream.write(b"\x7f")
    with pytest.raises(CheckpointError, match=r"experts.*up_proj.* holds NaN codes"):
        generate(load_checkpoint(folder, expert_places=4), native=native)


@pytest.mark.parametrize("native", [True, False])
def test_a_file_that_shrinks_while_it_is_used_is_an_error(write: Callable[..., Path], native: bool) -> None:
    folder = write("model", precision="fp8")
    model = load_checkpoint(folder, expert_places=2)
    os.truncate(folder / "model.safetensors", 20_000)
    with pytest.raises(CheckpointError, match=r"has become shorter while .*experts.* was read"):
        generate(model, native=native)


def test_experts_are_read_when_they_are_chosen_and_not_before(write: Callable[..., Path]) -> None:
    folder = write("model", precision="fp8")
    before = _bytes_read()
    model = load_checkpoint(folder, expert_places=8)
    loaded = _bytes_read() - before
    index = CheckpointIndex.from_dir(folder)
    experts = sum(info.num_bytes for name, info in index.items() if ROUTED_EXPERT.search(name) and "scale" not in name)
    assert loaded < index.num_bytes - experts + 50_000
    before = _bytes_read()
    generate(model, native=library() is not None)
    assert _bytes_read() - before <= experts + 1000  # 8 places hold all 8 of them: each is read once


def _bytes_read() -> int:
    """By system calls, from wherever."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
