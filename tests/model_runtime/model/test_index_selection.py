"""Which positions a query reads: exactly the best-scored visible ones, the lower position among equals."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import torch
from hypothesis import given

from v32.kernels.topk_select import topk_select
from v32.model_runtime.config import DeepseekV32Config, YarnScaling
from v32.model_runtime.model.attention import FullAttention
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

CONFIG = DeepseekV32Config(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    moe_intermediate_size=24,
    num_hidden_layers=2,
    first_k_dense_replace=1,
    num_attention_heads=2,
    q_lora_rank=24,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    index_n_heads=16,
    index_head_dim=16,
    index_topk=6,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    rope_scaling=YarnScaling(4.0, 64, mscale_all_dim=1.0),
    is_fp8=False,
)


def random_model(config: DeepseekV32Config) -> DeepseekV32ForCausalLM:
    torch.manual_seed(0)
    model = DeepseekV32ForCausalLM(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
    return model


def logits(model: DeepseekV32ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    attention = FullAttention([len(ids)], model.config.index_topk)
    return model.compute_logits(model(ids, torch.arange(len(ids)), attention))


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.5, 2.0, float("nan")]), min_size=1, max_size=12), st.integers(1, 14))
def test_the_best_visible_positions_are_chosen_lower_first_among_equals(values: list[float], k: int) -> None:
    rows = len(values)
    scores = torch.tensor(values).repeat(rows, 1)
    chosen = topk_select(scores, k, torch.arange(1, rows + 1))
    for t, row in enumerate(chosen.tolist()):
        rank = sorted(
            range(t + 1), key=lambda s: (values[s] != values[s], -values[s] if values[s] == values[s] else 0, s)
        )
        assert row == (rank[:k] + [-1] * rows)[: min(k, rows)]


def test_when_every_score_ties_the_first_positions_are_read() -> None:
    model = random_model(CONFIG)
    for layer in model.model.layers:
        layer.self_attn.indexer.weights_proj.weight.zero_()
    ids = torch.randint(0, 97, (20,))
    changed = ids.clone()
    changed[8:19] = (changed[8:19] + 1) % 97
    last, last_changed = logits(model, ids)[-1], logits(model, changed)[-1]
    # The last token reads positions 0-5 only, in each layer: what stands at 8-18 cannot reach it.
    assert torch.equal(last, last_changed)
    changed[3] = (changed[3] + 1) % 97
    assert not torch.allclose(last, logits(model, changed)[-1])


def test_a_sparse_model_equals_a_dense_one_up_to_index_topk() -> None:
    sparse = random_model(CONFIG)
    dense = random_model(dataclasses.replace(CONFIG, index_topk=2048))
    ids = torch.randint(0, 97, (16,))
    assert torch.equal(logits(sparse, ids[:6]), logits(dense, ids[:6]))
    torch.testing.assert_close(logits(sparse, ids)[:6], logits(dense, ids)[:6])
    assert not torch.allclose(logits(sparse, ids)[7:], logits(dense, ids)[7:])


def test_no_token_sees_a_later_one() -> None:
    model = random_model(CONFIG)
    ids = torch.randint(0, 97, (24,))
    whole = logits(model, ids)
    for length in (1, 5, 6, 7, 15):
        torch.testing.assert_close(whole[:length], logits(model, ids[:length]), rtol=1e-4, atol=1e-5)
