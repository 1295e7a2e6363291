"""Experts in host memory behind a cache on the device; here the device's memory is more of the CPU's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import slow
from tests.model_runtime.checkpoint.test_expert_files import cache_of, generate
from v32.kernels.moe_experts import ExpertWeights
from v32.model_runtime.chat import ChatModel
from v32.model_runtime.checkpoint import CheckpointIndex, load_checkpoint
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.generators.generator import SamplingParams, Token
from v32.model_runtime.loading import load_model
from v32.model_runtime.model.expert_cache import ExpertCache, ExpertKey, ExpertSource

EXPERTS = 8
"""Of the one layer that has some."""


@pytest.mark.parametrize("precision", ["fp8", *slow("bfloat16")])
@pytest.mark.parametrize("places", [3, *slow(1, 8, 100)])
def test_tokens_are_those_of_the_whole_model(write: Callable[..., Path], precision: str, places: int) -> None:
    folder = write("model", precision=precision)
    whole = load_checkpoint(folder)
    place_bytes = cache_of(load_checkpoint(folder, expert_places=1)).place_bytes
    offloaded = load_checkpoint(folder, expert_cache_bytes=places * place_bytes + 17)
    assert cache_of(offloaded).num_places == min(places, EXPERTS)
    assert generate(offloaded, native=False) == generate(whole, native=False)


class Noted:
    """A source that remembers what was read."""

    def __init__(self, source: ExpertSource) -> None:
        self.source, self.place, self.place_bytes = source, source.place, source.place_bytes
        self.moved: list[int] = []

    def read(self, key: ExpertKey, weights: ExpertWeights) -> None:
        self.moved.append(key.expert)
        self.source.read(key, weights)


def test_every_miss_is_one_transfer_and_hits_are_none(write: Callable[..., Path]) -> None:
    folder = write("model", precision="fp8")
    source = Noted(cache_of(load_checkpoint(folder, expert_cache_bytes=1 << 20))._source)
    cache = ExpertCache(source, torch.empty(3, source.place_bytes, dtype=torch.uint8))
    index = CheckpointIndex.from_dir(folder)
    for experts in ([0, 1, 2], [0], [3], [0, 2], [1]):
        for expert, weights in zip(experts, cache.hold(1, experts), strict=True):
            stored = index.read(f"model.layers.1.mlp.experts.{expert}.down_proj.weight")
            assert torch.equal(weights.down.view(torch.uint8), stored.view(torch.uint8))
    assert source.moved == [0, 1, 2, 3, 1]
    assert (cache.num_misses, cache.num_hits) == (5, 3)


def test_a_cache_without_room_for_one_expert_names_the_smallest_that_works(write: Callable[..., Path]) -> None:
    folder = write("model", precision="fp8")
    with pytest.raises(CheckpointError, match=r"holds no expert; the smallest that works has [0-9,]+ bytes"):
        load_checkpoint(folder, expert_cache_bytes=100)


def test_damage_is_told_while_loading(write: Callable[..., Path]) -> None:
    folder = write("model", precision="fp8")
    info = CheckpointIndex.from_dir(folder)["model.layers.1.mlp.experts.3.up_proj.weight"]
    with info.file.open("r+b") as stream:
        stream.seek(info.stop - 1)
        stream.write(b"\x7f")
    with pytest.raises(CheckpointError, match=r"experts.3.up_proj.* holds NaN codes"):
        load_checkpoint(folder, expert_cache_bytes=1 << 20)


def test_load_model_takes_the_size_as_people_write_it() -> None:
    plain, offloaded = load_model(), load_model(expert_cache="1MiB")
    params = SamplingParams(temperature=0.0, max_new_tokens=8)

    async def ids(model: ChatModel) -> list[int]:
        events = [event async for event in model.generator.generate([0, 5, 9, 30], params)]
        await model.aclose()
        return [event.id for event in events if isinstance(event, Token)]

    assert asyncio.run(ids(offloaded)) == asyncio.run(ids(plain))
