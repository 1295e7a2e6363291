"""Our model equals transformers' DeepseekV32ForCausalLM on the same weights, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from v32.model_runtime.model.attention import FullAttention
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM
from v32.model_runtime.scoring import generate_ids, score

TOLERANCE = 1e-4
SHAPES: dict[str, dict[str, Any]] = {
    "as_published_in_small": {},
    "without_yarn": {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
    "yarn_with_fewer_rotations": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "beta_fast": 16,
            "beta_slow": 2,
        }
    },
    "all_dense": {"first_k_dense_replace": 3},
    "all_experts": {"first_k_dense_replace": 0, "num_hidden_layers": 2},
    "one_group": {"n_group": 1, "topk_group": 1, "n_routed_experts": 6, "num_experts_per_tok": 2},
    "many_small_groups": {"n_group": 8, "topk_group": 3, "n_routed_experts": 24, "num_experts_per_tok": 5},
    "two_shared_experts": {"n_shared_experts": 2},
    "weights_not_normalised": {"norm_topk_prob": False, "routed_scaling_factor": 1.7},
    "one_head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "odd_heads": {"num_attention_heads": 5, "num_key_value_heads": 5, "index_n_heads": 17},
    "shorter_than_index_topk": {"index_topk": 2048},
    "values_wider_than_keys": {"v_head_dim": 56, "qk_nope_head_dim": 16},
    "index_heads_of_128": {"index_n_heads": 32, "index_head_dim": 128, "qk_rope_head_dim": 32},
    "index_all_rotary": {"index_head_dim": 16, "qk_rope_head_dim": 16, "index_n_heads": 24},
    # transformers' grouped product wants rows of 16 bytes where experts are concerned; the rest may be odd.
    "ragged_sizes": {
        "hidden_size": 132,
        "q_lora_rank": 33,
        "kv_lora_rank": 31,
        "intermediate_size": 77,
        "v_head_dim": 13,
    },
    "tied_head": {"tie_word_embeddings": True},
}


def our_logits(model: DeepseekV32ForCausalLM, batch: Tensor) -> Tensor:
    """All sequences of a batch [B, T] in one flat pass -> [B, T, vocab]."""
    rows, length = batch.shape
    attention = FullAttention([length] * rows, model.config.index_topk)
    with torch.inference_mode():
        hidden = model(batch.flatten(), torch.arange(length).repeat(rows), attention)
        return model.compute_logits(hidden).unflatten(0, (rows, length))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


FAST = ("as_published_in_small", "without_yarn", "one_group", "tied_head")


@pytest.mark.parametrize("shape", [pytest.param(s, marks=() if s in FAST else pytest.mark.slow) for s in SHAPES])
def test_logits_agree_below_and_above_index_topk(make_pair: Callable[..., Any], shape: str) -> None:
    seed = list(SHAPES).index(shape)
    pair = make_pair(seed, **SHAPES[shape])
    for length in (1, 7, 8, 9, 100):
        ids = torch.randint(0, 211, (1, length))
        assert relative_error(our_logits(pair.ours, ids), pair.their_logits(ids)) < TOLERANCE, length


def test_a_batch_agrees_with_a_batch(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(20)
    ids = torch.randint(0, 211, (5, 40))
    assert relative_error(our_logits(pair.ours, ids), pair.their_logits(ids)) < TOLERANCE


def test_yarn_holds_whatever_the_context_length(make_pair: Callable[..., Any]) -> None:
    """A context shorter than the original one must not switch YaRN or its softmax factor off."""
    yarn = SHAPES["yarn_with_fewer_rotations"]["rope_parameters"]
    pair = make_pair(21, max_position_embeddings=64, rope_parameters=yarn)
    without = make_pair(21, **SHAPES["without_yarn"])
    ids = torch.randint(0, 211, (1, 32))
    assert relative_error(our_logits(pair.ours, ids), pair.their_logits(ids)) < TOLERANCE
    assert relative_error(our_logits(pair.ours, ids), without.their_logits(ids)) > 10 * TOLERANCE


def test_the_indexer_rotates_halves_not_pairs(make_pair: Callable[..., Any]) -> None:
    """Beyond index_topk the layout decides which positions are read: the wrong one must be visible here."""
    pair = make_pair(22)
    ids = torch.randint(0, 211, (1, 120))
    theirs = pair.their_logits(ids)
    assert relative_error(our_logits(pair.ours, ids), theirs) < TOLERANCE
    for layer in pair.ours.model.layers:
        layer.self_attn.indexer.interleaved = True
    assert relative_error(our_logits(pair.ours, ids), theirs) > 100 * TOLERANCE
    assert relative_error(our_logits(pair.ours, ids)[:, :8], theirs[:, :8]) < TOLERANCE


def test_score_is_the_same_from_the_folder(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(23)
    ids = torch.randint(0, 211, (1, 50))
    assert relative_error(score(pair.folder, ids[0].tolist()), pair.their_logits(ids)[0]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_agree_for_64_steps(make_pair: Callable[..., Any], seed: int) -> None:
    pair = make_pair(30 + seed, index_topk=[8, 16, 32, 512][seed])
    ids = torch.randint(2, 211, (1, 12))
    theirs = pair.theirs.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=1, pad_token_id=0)
    assert generate_ids(pair.folder, ids[0].tolist(), 64) == theirs[0, 12:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_long_contexts_agree(make_pair: Callable[..., Any], seed: int) -> None:
    pair = make_pair(40 + seed, index_topk=64, index_n_heads=32)
    ids = torch.randint(0, 211, (1, 700))
    assert relative_error(our_logits(pair.ours, ids), pair.their_logits(ids)) < TOLERANCE


def test_drawn_tokens_repeat_with_their_seed(make_pair: Callable[..., Any]) -> None:
    folder = make_pair(50).folder
    drawn = [generate_ids(folder, [5, 6, 7], 24, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_ids_may_come_in_an_array_or_a_tensor(make_pair: Callable[..., Any]) -> None:
    folder, ids = make_pair(50).folder, [5, 6, 7]
    for form in (torch.tensor, np.array, tuple):
        assert torch.equal(score(folder, form(ids)), score(folder, ids))
        assert generate_ids(folder, form(ids), 3) == generate_ids(folder, ids, 3)


@pytest.mark.parametrize("function", [score, lambda folder, ids: generate_ids(folder, ids, 3)])
def test_ids_that_the_model_does_not_have_are_refused(make_pair: Callable[..., Any], function: Any) -> None:
    folder = make_pair(51, num_hidden_layers=1).folder
    for ids, message in (([], "empty"), ([3, 211], "211"), ([-1], "-1")):
        with pytest.raises(ValueError, match=message):
            function(folder, ids)
