"""A small random model, and folders written from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from v32.model_runtime.checkpoint.writer import write_checkpoint
from v32.model_runtime.config import DeepseekV32Config, YarnScaling
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

torch.set_num_threads(1)

CONFIG = DeepseekV32Config(
    vocab_size=150,
    hidden_size=144,
    intermediate_size=200,
    moe_intermediate_size=48,
    num_hidden_layers=2,
    first_k_dense_replace=1,
    num_attention_heads=2,
    q_lora_rank=40,
    kv_lora_rank=32,
    qk_nope_head_dim=24,
    qk_rope_head_dim=16,
    v_head_dim=24,
    index_n_heads=16,
    index_head_dim=32,
    index_topk=8,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    rope_scaling=YarnScaling(40.0, 64, mscale_all_dim=1.0),
    is_fp8=False,
)


@pytest.fixture
def config() -> DeepseekV32Config:
    return CONFIG


@pytest.fixture
def model(config: DeepseekV32Config) -> DeepseekV32ForCausalLM:
    """With a draft layer, float32."""
    torch.manual_seed(0)
    model = DeepseekV32ForCausalLM(config, with_mtp=True).requires_grad_(False)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    return model


@pytest.fixture
def write(tmp_path: Path, config: DeepseekV32Config, model: DeepseekV32ForCausalLM) -> Callable[..., Path]:
    """`write(name, **options of write_checkpoint)` -> the folder, with the draft layer only if `mtp=True`."""

    def write(name: str, *, mtp: bool = False, **options: Any) -> Path:
        draft = f"model.layers.{config.num_hidden_layers}."
        state = {key: value for key, value in model.state_dict().items() if mtp or not key.startswith(draft)}
        write_checkpoint(tmp_path / name, config, state, **options)
        return tmp_path / name

    return write
