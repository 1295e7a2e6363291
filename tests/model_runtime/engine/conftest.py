"""A small random model with every kind of layer, and plain generation without a cache to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from v32.kernels.sample import counter_uniform, sample
from v32.model_runtime.config import DeepseekV32Config, YarnScaling
from v32.model_runtime.engine import Engine
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.model.attention import FullAttention
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

CONFIG = DeepseekV32Config(
    vocab_size=300,
    hidden_size=48,
    intermediate_size=64,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    num_nextn_predict_layers=0,
    first_k_dense_replace=1,
    num_attention_heads=3,
    q_lora_rank=24,
    kv_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    index_n_heads=16,
    index_head_dim=16,
    index_topk=40,
    n_routed_experts=6,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    rope_scaling=YarnScaling(4.0, 64, mscale_all_dim=1.0),
    max_position_embeddings=65536,
    is_fp8=False,
)


@dataclass(frozen=True, repr=False)
class Oracle:
    """The definition of a generation: run the whole sequence again for each token."""

    model: DeepseekV32ForCausalLM

    def random_ids(self, length: int, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, CONFIG.vocab_size, (length,), generator=generator).tolist()

    @torch.inference_mode()
    def hidden(self, token_ids: Sequence[int]) -> torch.Tensor:
        attention = FullAttention([len(token_ids)], CONFIG.index_topk)
        return self.model(torch.tensor(token_ids), torch.arange(len(token_ids)), attention)

    @torch.inference_mode()
    def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[int]:
        assert params.max_new_tokens is not None
        token_ids = list(prompt_ids)
        for step in range(params.max_new_tokens):
            logits = self.model.compute_logits(self.hidden(token_ids)[-1:])
            uniforms = torch.tensor([counter_uniform(params.seed or 0, step)], dtype=torch.float64)
            drawn = sample(logits, torch.tensor([params.temperature]), torch.tensor([params.top_p]), uniforms)
            token_ids.append(int(drawn.ids))
        return token_ids[len(prompt_ids) :]


@pytest.fixture(scope="session")
def model() -> DeepseekV32ForCausalLM:
    generator = torch.Generator().manual_seed(5)
    model = DeepseekV32ForCausalLM(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.6 * parameter.shape[-1] ** -0.5, generator=generator)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def oracle(model: DeepseekV32ForCausalLM) -> Oracle:
    return Oracle(model)


def generate_together(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """What follows each prompt, all in one engine, whose pages are then in order."""
    sequences = [engine.add(prompt, params) for prompt in prompts]
    while engine.has_work:
        engine.step()
    engine.check_integrity()
    return [sequence.token_ids[len(prompt) :] for sequence, prompt in zip(sequences, prompts)]
