"""Random small models in the form of transformers' own implementation, saved and loaded again as ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from v32.model_runtime.checkpoint.loader import load_checkpoint
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

torch.set_num_threads(1)

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "beta_fast": 32,
    "beta_slow": 1,
}
SMALL: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 96,
    "intermediate_size": 144,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "index_n_heads": 16,
    "index_head_dim": 32,
    "index_topk": 8,
    "max_position_embeddings": 2560,
    "rope_parameters": YARN,
}


class Pair(NamedTuple):
    """The same weights in transformers and here."""

    theirs: Any
    ours: DeepseekV32ForCausalLM
    folder: Path

    def their_logits(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> [B, T, vocab]."""
        with torch.inference_mode():
            return self.theirs(ids).logits.float()


@pytest.fixture
def make_pair(tmp_path: Path) -> Callable[..., Pair]:
    """`make_pair(seed, **changes of SMALL)`."""
    transformers = pytest.importorskip("transformers", minversion="5.23")

    def make(seed: int = 0, **changes: Any) -> Pair:
        torch.manual_seed(seed)
        config = transformers.DeepseekV32Config(**SMALL | changes)
        config._attn_implementation = "eager"
        theirs = transformers.DeepseekV32ForCausalLM(config).eval()
        randomise(theirs)
        folder = tmp_path / f"pair-{seed}"
        theirs.save_pretrained(folder)
        return Pair(theirs, load_checkpoint(folder), folder)

    return make


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Weights large enough that attention, routing and selection all matter."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "e_score_correction_bias" in name:
            tensor.normal_(0, 0.3)
        elif "norm" in name:
            tensor.normal_(0 if name.endswith("bias") else 1, 0.1)
        elif tensor.dim() > 1:
            tensor.normal_(0, 0.1)
