"""config.json of the published models is understood as it is; what would be computed wrongly is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.model.rotary import inverse_frequencies
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "attention_bias": False,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "scale_fmt": "ue8m0",
    },
}
# [out, in] of the published checkpoint, one layer of each kind.
TENSORS = {
    "model.embed_tokens.weight": (129280, 7168),
    "model.norm.weight": (7168,),
    "lm_head.weight": (129280, 7168),
    "model.layers.0.input_layernorm.weight": (7168,),
    "model.layers.0.post_attention_layernorm.weight": (7168,),
    "model.layers.0.self_attn.q_a_proj.weight": (1536, 7168),
    "model.layers.0.self_attn.q_a_layernorm.weight": (1536,),
    "model.layers.0.self_attn.q_b_proj.weight": (24576, 1536),
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (576, 7168),
    "model.layers.0.self_attn.kv_a_layernorm.weight": (512,),
    "model.layers.0.self_attn.kv_b_proj.weight": (32768, 512),
    "model.layers.0.self_attn.o_proj.weight": (7168, 16384),
    "model.layers.0.self_attn.indexer.wq_b.weight": (8192, 1536),
    "model.layers.0.self_attn.indexer.wk.weight": (128, 7168),
    "model.layers.0.self_attn.indexer.k_norm.weight": (128,),
    "model.layers.0.self_attn.indexer.k_norm.bias": (128,),
    "model.layers.0.self_attn.indexer.weights_proj.weight": (64, 7168),
    "model.layers.0.mlp.gate_proj.weight": (18432, 7168),
    "model.layers.0.mlp.up_proj.weight": (18432, 7168),
    "model.layers.0.mlp.down_proj.weight": (7168, 18432),
    "model.layers.3.mlp.gate.weight": (256, 7168),
    "model.layers.3.mlp.gate.e_score_correction_bias": (256,),
    "model.layers.3.mlp.experts.255.gate_proj.weight": (2048, 7168),
    "model.layers.3.mlp.experts.0.up_proj.weight": (2048, 7168),
    "model.layers.3.mlp.experts.7.down_proj.weight": (7168, 2048),
    "model.layers.3.mlp.shared_experts.gate_proj.weight": (2048, 7168),
    "model.layers.3.mlp.shared_experts.up_proj.weight": (2048, 7168),
    "model.layers.3.mlp.shared_experts.down_proj.weight": (7168, 2048),
    "model.layers.4.enorm.weight": (7168,),
    "model.layers.4.hnorm.weight": (7168,),
    "model.layers.4.eh_proj.weight": (7168, 14336),
    "model.layers.4.shared_head.norm.weight": (7168,),
    "model.layers.4.shared_head.head.weight": (129280, 7168),
    "model.layers.4.embed_tokens.weight": (129280, 7168),
    "model.layers.4.mlp.experts.255.down_proj.weight": (7168, 2048),
}


def test_the_published_config_is_the_default() -> None:
    assert DeepseekV32Config.from_dict(PUBLISHED) == DeepseekV32Config(scale_fmt="ue8m0")
    parameters = {key: value for key, value in PUBLISHED["rope_scaling"].items() if key != "type"}
    renamed = PUBLISHED | {
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000} | parameters,
    }
    assert DeepseekV32Config.from_dict(renamed) == DeepseekV32Config.from_dict(PUBLISHED)


@pytest.mark.slow
def test_names_and_shapes_are_those_of_the_published_tensors() -> None:
    """Three dense layers, one with experts, the draft layer: 671.9 billion parameters in all 61, 37.5 active."""
    with torch.device("meta"):
        model = DeepseekV32ForCausalLM(DeepseekV32Config(num_hidden_layers=4), with_mtp=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: shapes[name] for name in TENSORS} == TENSORS
    per_layer = [sum(math.prod(s) for n, s in shapes.items() if n.startswith(f"model.layers.{i}.")) for i in range(5)]
    outside = 2 * 129280 * 7168 + 7168
    assert round((3 * per_layer[0] + 58 * per_layer[3] + outside) / 1e8) == 6719
    # Every layer holds these and nothing else: one name of each expert stands for all.
    kinds = {n.split(".", 3)[3] for n in shapes if n.startswith("model.layers.3.") and ".experts." not in n}
    listed = {n.split(".", 3)[3] for n in TENSORS if n.startswith(("model.layers.0.self_attn", "model.layers.3.mlp"))}
    assert kinds == {name for name in listed if ".experts." not in name} | {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    }


def test_yarn_of_the_published_model() -> None:
    """Frequencies 0-10 as they are, 23-31 divided by 40, a ramp between; the softmax scale is 0.13523378."""
    config = DeepseekV32Config()
    assert config.softmax_scale == pytest.approx(0.13523378, abs=1e-8)
    plain = 10000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    ramp = ((torch.arange(32, dtype=torch.float64) - 10) / 13).clamp(0, 1)
    expected = plain * (1 - ramp) + plain / 40 * ramp
    torch.testing.assert_close(inverse_frequencies(config).double(), expected, rtol=1e-6, atol=0)
    with torch.device("meta"):
        assert inverse_frequencies(config).device.type == "cpu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "deepseek_v3"}, "has model_type 'deepseek_v3'; this runtime loads 'deepseek_v32'"),
        ({"scoring_func": "softmax"}, "has scoring_func 'softmax'; this runtime computes 'sigmoid' only"),
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu'; this runtime computes 'silu' only"),
        ({"attention_bias": True}, "has attention_bias True; this runtime computes False only"),
        ({"hidden_size": "7168"}, "has hidden_size '7168'; it must be int"),
        ({"index_topk": 2048.0}, "has index_topk 2048.0; it must be int"),
        ({"eos_token_id": [1, 2]}, "has eos_token_id [1, 2]; it must be int"),
        ({"norm_topk_prob": 1}, "has norm_topk_prob 1; it must be bool"),
        ({"rms_norm_eps": "1e-6"}, "has rms_norm_eps '1e-6'; it must be a number"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq' is not supported; use fp8 or none"),
        ({"quantization_config": [1]}, "has quantization_config [1]; it must be an object"),
        ({"rope_scaling": "yarn"}, "has rope_scaling 'yarn'; it must be an object"),
        ({"rope_scaling": {"type": "yarn"}}, "has factor of yarn None; it must be a number"),
        ({"rope_theta": "x", "rope_scaling": None}, "has rope_theta 'x'; it must be a number"),
        ({"n_group": 0}, "n_group is 0; it must be 1 or more"),
        ({"hidden_size": -1}, "hidden_size is -1; it must be 1 or more"),
        ({"n_routed_experts": 255}, "n_routed_experts 255 is no multiple of n_group 8"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        DeepseekV32Config.from_dict(PUBLISHED | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [[], None, "x"])
def test_what_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(CheckpointError, match="it must be an object"):
        DeepseekV32Config.from_dict(data)


def test_whole_numbers_pass_as_numbers() -> None:
    assert DeepseekV32Config.from_dict(PUBLISHED | {"routed_scaling_factor": 2}).routed_scaling_factor == 2
