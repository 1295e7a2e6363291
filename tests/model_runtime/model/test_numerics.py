"""numerics="deepseek": each rounding equals its definition, written out in float64 over explicit FP8 values."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from v32.kernels.act_quant import act_quant, act_round
from v32.kernels.fp8_gemm import fp8_gemm
from v32.kernels.moe_experts import moe_experts
from v32.model_runtime import load_model
from v32.model_runtime.checkpoint import load_checkpoint, write_checkpoint
from v32.model_runtime.checkpoint.fp8 import quantize_blocks
from v32.model_runtime.checkpoint.source import embedded_checkpoint
from v32.model_runtime.config import DeepseekV32Config, YarnScaling
from v32.model_runtime.generators.generator import SamplingParams, Token
from v32.model_runtime.model.indexer import Indexer
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.mla import MLA
from v32.model_runtime.model.moe import MoE
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM
from v32.model_runtime.scoring import full_logits

CONFIG = DeepseekV32Config(
    vocab_size=120,
    hidden_size=160,
    intermediate_size=136,
    moe_intermediate_size=64,
    num_hidden_layers=2,
    first_k_dense_replace=1,
    num_attention_heads=2,
    q_lora_rank=40,
    kv_lora_rank=144,
    qk_nope_head_dim=24,
    qk_rope_head_dim=16,
    v_head_dim=24,
    index_n_heads=16,
    index_head_dim=64,
    index_topk=32,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    rope_scaling=YarnScaling(40.0, 64, mscale_all_dim=1.0),
    scale_fmt="ue8m0",
)
# The 127 finite magnitudes of e4m3 in the order of their codes: even codes are even mantissas.
GRID = np.array(
    [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    + [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)][:-1]
)


def to_e4m3(value: float) -> float:
    """Nearest value of the grid, of two equally near the one with the even code."""
    distance = np.abs(GRID - min(abs(value), 448.0))
    best = np.flatnonzero(distance == distance.min())
    return math.copysign(GRID[best[best % 2 == 0][0] if len(best) > 1 else best[0]], value)


def rounded(row: np.ndarray, ue8m0: bool = True) -> np.ndarray:
    """One row through FP8 and back, in float64."""
    out = np.empty(row.shape)
    for start in range(0, len(row), 128):
        block = row[start : start + 128].astype(np.float32)
        scale = float(np.float32(max(np.abs(block).max(), np.float32(1e-4))) * np.float32(1 / 448))
        if ue8m0:
            mantissa, exponent = math.frexp(scale)
            scale = 2.0 ** (exponent - (mantissa == 0.5))
        out[start : start + 128] = [to_e4m3(float(np.float32(value) / np.float32(scale))) * scale for value in block]
    return out


def all_rounded(x: torch.Tensor, ue8m0: bool = True) -> np.ndarray:
    rows = x.float().reshape(-1, x.shape[-1]).numpy()
    return np.stack([rounded(row, ue8m0) for row in rows]).reshape(x.shape)


def relative_error(got: torch.Tensor, exact: np.ndarray) -> float:
    return float(np.linalg.norm(got.double().numpy() - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeepseekV32ForCausalLM:
    return load_checkpoint(folder_of_random_weights(tmp_path_factory.mktemp("fp8")), numerics="deepseek")


def folder_of_random_weights(folder: Path) -> Path:
    torch.manual_seed(3)
    model = DeepseekV32ForCausalLM(CONFIG).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
    write_checkpoint(folder, CONFIG, model.state_dict(), precision="fp8")
    return folder


@pytest.mark.parametrize("ue8m0", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_round_as_defined(dtype: torch.dtype, ue8m0: bool) -> None:
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(1)) * torch.logspace(-7, 4, 300)
    x[2] = 0
    x[3, :128] = 1e-6  # below the floor
    x = x.to(dtype)
    codes, scales = act_quant(x, ue8m0=ue8m0)
    assert scales.shape == (4, 3)
    exact = all_rounded(x, ue8m0)
    spread = scales.double().repeat_interleave(128, -1)[:, :300]
    np.testing.assert_array_equal((codes.double() * spread).numpy(), exact)
    if ue8m0:
        assert act_round(x).dtype == dtype
        np.testing.assert_array_equal(act_round(x).double().numpy(), exact)


@given(st.integers(-13, 20), st.integers(0, 2**23 - 1))
def test_scales_are_the_smallest_power_of_two(exponent: int, mantissa: int) -> None:
    largest = np.float32(2.0**exponent) * (np.float32(1) + np.float32(mantissa * 2.0**-23))
    _, scale = act_quant(torch.tensor([[float(largest)]]))
    wanted = math.frexp(float(largest * np.float32(1 / 448)))
    assert float(scale) == 2.0 ** (wanted[1] - (wanted[0] == 0.5))
    assert largest / np.float32(scale) <= 448 * (1 + 2**-22)


def test_rounding_twice_is_rounding_once() -> None:
    once = act_round(torch.randn(50, 257) * torch.logspace(-5, 5, 257))
    assert torch.equal(act_round(once), once)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-3)])
@pytest.mark.parametrize("fmt", ["ue8m0", "float32"])
def test_products_are_of_the_rounded_operands(dtype: torch.dtype, bound: float, fmt: str) -> None:
    x = torch.randn(5, 300).to(dtype)
    codes, scale = quantize_blocks(torch.randn(200, 300))
    spread = scale.double().repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    exact = all_rounded(x, fmt == "ue8m0") @ (codes.double() * spread).numpy().T
    y = fp8_gemm(x, codes, scale, fmt)  # type: ignore[arg-type]
    assert y.dtype == dtype
    assert relative_error(y, exact) < bound
    assert relative_error(fp8_gemm(x, codes, scale), exact) > 3 * bound  # without, x is not rounded


def test_experts_round_as_their_own_layers_do(model: DeepseekV32ForCausalLM) -> None:
    moe = model.model.layers[1].mlp
    x = torch.randn(9, CONFIG.hidden_size)
    weights, indices = moe.gate(x)
    experts = [expert.expert_weights() for expert in moe.experts]
    expected = torch.stack(
        [sum(w * moe.experts[e](x[t : t + 1])[0] for w, e in zip(weights[t], indices[t].tolist())) for t in range(9)]
    )
    torch.testing.assert_close(moe_experts(x, indices, weights, experts, "ue8m0"), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(moe_experts(x, indices, weights, experts), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moe(x), expected + moe.shared_experts(x), rtol=1e-5, atol=1e-6)


def test_what_is_cached_has_passed_fp8(model: DeepseekV32ForCausalLM) -> None:
    """Against the same projections without these roundings, which are then applied by definition."""
    mla = model.model.layers[0].self_attn
    x = torch.randn(7, CONFIG.hidden_size)
    cos, sin = model.model.rotary(torch.arange(7))
    mla.rounds_latent = mla.indexer.rounds_heads = False
    plain = mla.project(x, cos, sin, with_index_queries=True)
    mla.rounds_latent = mla.indexer.rounds_heads = True
    got = mla.project(x, cos, sin, with_index_queries=True)
    np.testing.assert_array_equal(got.latent.double().numpy(), all_rounded(plain.latent))
    assert torch.equal(got.k_pe, plain.k_pe)
    sylvester = np.ones((1, 1))
    while len(sylvester) < CONFIG.index_head_dim:
        sylvester = np.kron([[1, 1], [1, -1]], sylvester)
    for mixed, vector in ((got.index_k, plain.index_k), (got.index_q, plain.index_q)):
        turned = vector.double().numpy() @ sylvester / math.sqrt(CONFIG.index_head_dim)
        exact = all_rounded(torch.from_numpy(turned))
        # Float32 sums in another order may fall to the other side of a rounding border, by one step of 1/8.
        assert np.mean(mixed.double().numpy() != exact) < 0.002
        np.testing.assert_allclose(mixed.double().numpy(), exact, rtol=0.13, atol=1e-3)


def test_the_whole_model_stays_near_the_float_one_and_can_be_switched_back(tmp_path: Path) -> None:
    folder = folder_of_random_weights(tmp_path)
    kept = load_checkpoint(folder, dequantize=False)
    ids = torch.randint(0, 120, (20,), generator=torch.Generator().manual_seed(5)).tolist()
    exact = full_logits(kept, ids)
    kept.set_numerics("deepseek")
    rounded_logits = full_logits(kept, ids)
    cosine = torch.cosine_similarity(exact, rounded_logits, dim=-1)
    assert 0.95 < cosine.median() < 0.99999
    kept.set_numerics("float")
    assert torch.equal(full_logits(kept, ids), exact)


async def _greedy(ids: list[int], numerics: Literal["float", "deepseek"]) -> list[Token]:
    """What a user's `load_model` generates after `ids` with the embedded checkpoint."""
    model = load_model(numerics=numerics)
    params = SamplingParams(temperature=0.0, max_new_tokens=12, logprobs=True)
    items = [item async for item in model.generator.generate(ids, params)]
    await model.aclose()
    return [item for item in items if isinstance(item, Token)]


def _rounded_by_hand() -> DeepseekV32ForCausalLM:
    """The embedded checkpoint with float weights, its roundings hung around the modules where the paper has them."""
    folder = embedded_checkpoint()
    model, stored = load_checkpoint(folder, dequantize=True), load_checkpoint(folder, dequantize=False)
    hadamard = torch.ones(1, 1)
    while len(hadamard) < model.config.index_head_dim:
        hadamard = torch.kron(torch.tensor([[1.0, 1], [1, -1]]), hadamard)
    mixed = hadamard / math.sqrt(model.config.index_head_dim)
    for module, as_stored in zip(model.modules(), stored.modules()):
        if isinstance(module, Linear) and as_stored.weight_scale_inv is not None:
            module.register_forward_pre_hook(lambda _, inputs: act_round(inputs[0]))
        elif isinstance(module, MLA):
            module.kv_a_layernorm.register_forward_hook(lambda _, inputs, latent: act_round(latent))
        elif isinstance(module, Indexer):
            rotate = module._rotate
            module._rotate = lambda *heads, rotate=rotate: act_round(rotate(*heads) @ mixed)  # type: ignore[method-assign]
        elif isinstance(module, MoE):
            module.routed = lambda x, indices, weights, moe=module: sum(  # type: ignore[method-assign]
                (weights * (indices == e)).sum(-1, keepdim=True) * expert(x) for e, expert in enumerate(moe.experts)
            )
    return model


@pytest.mark.slow
@pytest.mark.anyio
async def test_load_model_generates_what_the_published_roundings_give() -> None:
    """Paged, chunked and cached against one pass over the whole sequence, beyond index_topk."""
    ids = torch.randint(3, 1000, (160,), generator=torch.Generator().manual_seed(8)).tolist()
    tokens = await _greedy(ids, "deepseek")
    whole = full_logits(_rounded_by_hand(), ids + [token.id for token in tokens]).log_softmax(-1)[len(ids) - 1 : -1]
    expected = whole.gather(1, torch.tensor([[token.id] for token in tokens]))[:, 0]
    difference = (torch.tensor([token.logprob for token in tokens]) - expected).abs()
    assert difference.max() < 0.01
    assert [token.logprob for token in await _greedy(ids, "float")] != pytest.approx(expected.tolist(), abs=0.05)


def test_rounding_does_not_depend_on_the_batch(model: DeepseekV32ForCausalLM) -> None:
    ids = torch.randint(0, 120, (12,)).tolist()
    torch.testing.assert_close(full_logits(model, ids)[:5], full_logits(model, ids[:5]), rtol=1e-3, atol=1e-3)


def test_impossible_numerics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"multiplies FP8 by FP8; leave the weights FP8"):
        load_checkpoint(tmp_path, numerics="deepseek", dequantize=True)
    odd = DeepseekV32ForCausalLM(dataclasses.replace(CONFIG, index_head_dim=48))
    with pytest.raises(ValueError, match=r"needs an index_head_dim that is a power of two, not 48"):
        odd.set_numerics("deepseek")
