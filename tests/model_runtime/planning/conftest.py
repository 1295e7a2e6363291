"""Small configurations in the published form, and folders of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from v32.model_runtime.checkpoint.writer import write_checkpoint
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 160,
    "intermediate_size": 256,
    "moe_intermediate_size": 72,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "index_n_heads": 16,
    "index_head_dim": 32,
    "index_topk": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "max_position_embeddings": 4096,
}


def small_config(**changes: Any) -> DeepseekV32Config:
    return DeepseekV32Config(**SMALL | changes)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(config, precision)` -> a folder with random weights and a draft layer."""

    def write(config: DeepseekV32Config, precision: str = "fp8", max_shard_bytes: int = 1 << 20) -> Path:
        torch.manual_seed(0)
        model = DeepseekV32ForCausalLM(config, with_mtp=True).requires_grad_(False)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.05)
        folder = tmp_path / f"{precision}-{config.hidden_size}"
        write_checkpoint(folder, config, model.state_dict(), precision=precision, max_shard_bytes=max_shard_bytes)  # type: ignore[arg-type]
        return folder

    return write
