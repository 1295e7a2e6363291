"""The checkpoint that comes along: small, of the published layout, and loaded like any other."""

from __future__ import annotations

import json

import pytest
import torch

from v32.agent import Agent
from v32.model_runtime import SamplingParams, load_model
from v32.model_runtime.checkpoint.index import CheckpointIndex
from v32.model_runtime.checkpoint.loader import load_checkpoint
from v32.model_runtime.checkpoint.source import embedded_checkpoint
from v32.model_runtime.checkpoint.variant import detect_variant
from v32.tools import tool


def test_it_is_small_and_of_the_published_layout() -> None:
    folder = embedded_checkpoint()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV32ForCausalLM"]
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    index = CheckpointIndex.from_dir(folder)
    assert index["model.layers.0.self_attn.q_a_proj.weight"].dtype == torch.float8_e4m3fn
    assert f"model.layers.{config['num_hidden_layers']}.eh_proj.weight" in index
    assert detect_variant(folder).name == "v3.2"


def test_fp8_in_memory_gives_the_same_logits_as_dequantised_weights() -> None:
    from v32.model_runtime.scoring import full_logits

    ids = list(range(3, 200))
    stored = full_logits(load_checkpoint(embedded_checkpoint(), dequantize=False), ids)
    dequantised = full_logits(load_checkpoint(embedded_checkpoint(), dequantize=True), ids)
    assert (stored - dequantised).abs().max() < 2e-4 * dequantised.abs().max()


@pytest.mark.slow
def test_an_agent_answers_with_it_and_repeats_itself_with_a_seed() -> None:
    @tool
    def population(city: str) -> int:
        """Number of inhabitants of a city."""
        return {"Paris": 2_100_000}.get(city, 0)

    model = load_model()
    agent = Agent(model, tools=[population], params=SamplingParams(seed=3, max_new_tokens=200))
    first, again = (agent.run_sync("What is the population of Paris?") for _ in range(2))
    assert first.transcript.ids == again.transcript.ids
    assert first.usage.completion_tokens > 0
    for call in first.tool_calls:
        assert call["name"] == "population"
        assert set(call["arguments"]) == {"city"}
