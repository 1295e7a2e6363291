"""What the engine would launch on a GPU, run in Triton's interpreter: tokens and logits are those of the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from v32.model_runtime.checkpoint.writer import write_checkpoint
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

# Longer than index_topk: prompts are prefilled densely and sparsely, and decoding scores pages.
CONFIG = DeepseekV32Config(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_hidden_layers=2,
    first_k_dense_replace=1,
    num_attention_heads=2,
    q_lora_rank=32,
    kv_lora_rank=128,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=16,
    index_n_heads=2,
    index_head_dim=32,
    index_topk=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    max_position_embeddings=512,
)

GENERATE = """
import json, sys, torch
from v32.model_runtime.cache.pages import FP8_RECORDS
from v32.model_runtime.checkpoint.loader import load_checkpoint
from v32.model_runtime.engine import Engine
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.scoring import full_logits

folder, dtype = sys.argv[1:]
model = load_checkpoint(folder, dtype=getattr(torch, dtype), dequantize=False)
ids = list(range(5, 27))

def generate(kv_dtype):
    engine = Engine(model, kv_budget_bytes=1 << 24, kv_dtype=kv_dtype)
    greedy = engine.add(ids, SamplingParams(temperature=0.0, max_new_tokens=3))
    drawn = engine.add(ids[:12], SamplingParams(seed=3, max_new_tokens=2))
    while engine.has_work:
        engine.step()
    return [greedy.token_ids, drawn.token_ids], [layer.records[: len(ids)].tolist() for layer in engine.pool.layers]

tokens, _ = generate(None)
fp8_tokens, records = generate(FP8_RECORDS)
kernels = [name for name in sys.modules if name.startswith("v32.kernels.") and name.endswith(".triton")]
print(json.dumps({
    "logits": full_logits(model, ids).tolist(),
    "tokens": tokens,
    "fp8_tokens": fp8_tokens,
    "records": records,
    "kernels": sorted(name.split(".")[-2] for name in kernels),
}))
"""
KERNELS = {
    *(
        "dense_mla",
        "float_gemm",
        "fp8_gemm",
        "index_score",
        "kv_append",
        "moe_experts",
        "moe_route",
        "rms_norm",
        "rope",
        "sample",
    ),
    *("sparse_mla", "swiglu", "topk_select"),
}


def generate(folder: Path, dtype: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-c", GENERATE, str(folder), dtype]
    environment = os.environ | {"V32_NATIVE": "0", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_the_kernels_compute_the_model(dtype: str, bound: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DeepseekV32ForCausalLM(CONFIG).requires_grad_(False)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    write_checkpoint(tmp_path / "model", CONFIG, model.state_dict(), precision="fp8")
    plain = generate(tmp_path / "model", dtype)
    launched = generate(tmp_path / "model", dtype, V32_INTERPRET="1")
    assert set(launched["kernels"]) >= KERNELS
    assert not plain["kernels"]
    logits, expected = (torch.tensor(each["logits"]) for each in (launched, plain))
    assert float((logits - expected).norm() / expected.norm()) < bound
    if dtype == "float32":
        assert launched["tokens"] == plain["tokens"]
        assert launched["fp8_tokens"] == plain["fp8_tokens"]
        # A value on the border between two codes may fall to either side.
        bytes_of = [torch.tensor(each["records"]) for each in (launched, plain)]
        assert float((bytes_of[0] != bytes_of[1]).double().mean()) < 1e-3
