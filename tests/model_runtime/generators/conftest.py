"""A tokenizer, and a generator of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import pytest
import torch

from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.encoding import ChatTokenizer
from v32.model_runtime.engine import Engine
from v32.model_runtime.generators import (
    LocalGenerator,
    ScriptedGenerator,
    SGLangGenerator,
    TokenGenerator,
    VLLMGenerator,
)
from v32.model_runtime.generators.server import Server
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

from .fake_servers import CONTEXT, FakeServer

TEXT = "One two three four five six seven eight nine ten. " * 8


@pytest.fixture(params=["scripted", "local", "vllm", "sglang"])
def generator(request: pytest.FixtureRequest, tokenizer: ChatTokenizer) -> Iterator[TokenGenerator]:
    """One that always has something to say, in a context of 200 positions."""
    fake = FakeServer(tokenizer.encode_text(TEXT))
    match request.param:
        case "scripted":
            yield ScriptedGenerator(tokenizer, repeat(TEXT), max_context=CONTEXT)
        case "local":
            yield LocalGenerator(Engine(random_model(), max_context=CONTEXT))
        case "vllm":
            with fake.run() as url:
                yield VLLMGenerator.connect(Server(url))
        case "sglang":
            with fake.run() as url:
                yield SGLangGenerator.connect(Server(url))


def random_model(vocab_size: int = 64) -> DeepseekV32ForCausalLM:
    config = DeepseekV32Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_nextn_predict_layers=0,
        first_k_dense_replace=1,
        num_attention_heads=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        index_n_heads=4,
        index_head_dim=16,
        index_topk=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        rope_scaling=None,
        max_position_embeddings=4096,
        is_fp8=False,
    )
    generator = torch.Generator().manual_seed(1)
    model = DeepseekV32ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model.requires_grad_(False)
