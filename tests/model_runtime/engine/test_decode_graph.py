"""Decoding steps of fixed shape give the tokens of the engine without them, and can be recorded: run again on the same
memory, without the model's Python, they compute what the new numbers ask for."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.model_runtime.engine.conftest import CONFIG, generate_together
from v32.model_runtime.cache.pages import FP8_RECORDS
from v32.model_runtime.engine import Engine
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

# Some decode from the first token on, some cross index_topk or a border of pages, not all in every step.
PROMPTS = [[7], [5, 6, 7, 8, 9], list(range(30, 68)), list(range(100, 225))]
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=9)
DRAWN = SamplingParams(temperature=1.0, seed=3, max_new_tokens=9)


@pytest.fixture(scope="module")
def wide() -> DeepseekV32ForCausalLM:
    """A model whose latents fill one block of FP8."""
    torch.manual_seed(0)
    model = DeepseekV32ForCausalLM(dataclasses.replace(CONFIG, kv_lora_rank=128), with_mtp=False).requires_grad_(False)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    return model


class Shapes:
    """Records nothing; keeps how often each recording would have been replayed."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        index = len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[index] += 1
            step()

        return replay


@pytest.mark.parametrize("kv_dtype", [torch.float32, FP8_RECORDS], ids=["float32", "fp8"])
@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_steps_of_fixed_shape_change_no_token(
    wide: DeepseekV32ForCausalLM, kv_dtype: torch.dtype, params: SamplingParams
) -> None:
    shapes = Shapes()
    fixed = Engine(wide, kv_dtype=kv_dtype, kv_budget_bytes=1 << 22, capture=shapes)
    plain = Engine(wide, kv_dtype=kv_dtype, kv_budget_bytes=1 << 22)
    assert generate_together(fixed, PROMPTS, params) == generate_together(plain, PROMPTS, params)
    assert len(shapes.replays) <= 4
    assert sum(shapes.replays) == params.max_new_tokens - 1  # the first token comes from prefill


def test_a_grown_pool_and_new_weights_are_recorded_anew(wide: DeepseekV32ForCausalLM) -> None:
    shapes = Shapes()
    engine = Engine(wide, kv_budget_bytes=1 << 24, capture=shapes)
    generate_together(engine, PROMPTS[:1], GREEDY)
    assert len(shapes.replays) == 1
    engine.pool.ensure(2 * engine.pool.capacity)
    generate_together(engine, PROMPTS[:1], GREEDY)
    assert len(shapes.replays) == 2
    engine.reset_prefix_cache()
    generate_together(engine, PROMPTS[:1], GREEDY)
    assert len(shapes.replays) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")
def test_recorded_graphs_change_no_token(wide: DeepseekV32ForCausalLM) -> None:
    model = copy.deepcopy(wide).cuda()
    recorded, plain = (Engine(model, kv_budget_bytes=1 << 22, capture=capture) for capture in (None, lambda step: step))
    assert generate_together(recorded, PROMPTS, DRAWN) == generate_together(plain, PROMPTS, DRAWN)


REPLAYED = """
import json, sys, torch
from tests.model_runtime.engine.tape import Tape
from v32.model_runtime.cache.pages import FP8_RECORDS
from v32.model_runtime.checkpoint.loader import load_checkpoint
from v32.model_runtime.engine import Engine
from v32.model_runtime.generators.generator import SamplingParams

model = load_checkpoint(sys.argv[1], dtype=torch.float32, dequantize=False)

def generate(kv_dtype, capture):
    engine = Engine(model, kv_budget_bytes=1 << 22, kv_dtype=kv_dtype, capture=capture)
    wanted = ([5, 6], 5), ([9], 3)
    sequences = [engine.add(ids, SamplingParams(temperature=0.0, max_new_tokens=n)) for ids, n in wanted]
    while engine.has_work:
        engine.step()
    return [sequence.token_ids for sequence in sequences]

tape = Tape()
result = {"tokens": [], "replayed": []}
for kv_dtype in (torch.float32, FP8_RECORDS):
    result["tokens"].append(generate(kv_dtype, lambda step: step))
    result["replayed"].append(generate(kv_dtype, tape))
print(json.dumps({**result, "replays": tape.num_replays, "launches": tape.num_launches}))
"""


@pytest.mark.slow
def test_what_a_gpu_would_record_is_replayed_with_new_numbers(tmp_path: Path) -> None:
    """The kernels run in Triton's interpreter. The tape refuses what a recording cannot hold."""
    from v32.model_runtime.checkpoint.writer import write_checkpoint

    torch.manual_seed(0)
    config = dataclasses.replace(
        CONFIG, num_hidden_layers=2, kv_lora_rank=128, index_n_heads=2, index_topk=4, rope_scaling=None, is_fp8=True
    )
    model = DeepseekV32ForCausalLM(config).requires_grad_(False)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    write_checkpoint(tmp_path / "model", config, model.state_dict(), precision="fp8")
    environment = os.environ | {"V32_NATIVE": "0", "V32_INTERPRET": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", REPLAYED, str(tmp_path / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["replayed"] == result["tokens"]
    assert result["replays"] >= 8
    assert result["launches"] > 20
