"""The architecture of a checkpoint, read from its config.json. Keys are those of Hugging Face."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from v32.model_runtime.errors import CheckpointError

MODEL_TYPE = "deepseek_v32"
Numerics = Literal["float", "deepseek"]
"""`float`: activations keep their dtype. `deepseek`: they are rounded to FP8 wherever DeepSeek's reference does so."""

_MAY_BE_ZERO = ("first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers", "bos_token_id", "eos_token_id")


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN stretching of the rotary frequencies (arXiv 2309.00071)."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    @property
    def softmax_factor(self) -> float:
        """Multiplies the softmax scale: the square of 0.1 * mscale_all_dim * ln(factor) + 1."""
        return _mscale(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    @property
    def amplitude(self) -> float:
        """Multiplies cos and sin; 1 when mscale equals mscale_all_dim, as in every published checkpoint."""
        if not (self.mscale and self.mscale_all_dim):
            return _mscale(self.factor, 1.0)
        return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)


@dataclass(frozen=True, slots=True)
class DeepseekV32Config:
    """DeepseekV32ForCausalLM. Defaults are the published 671B model."""

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_nextn_predict_layers: int = 1
    first_k_dense_replace: int = 3
    num_attention_heads: int = 128
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    index_n_heads: int = 64
    index_head_dim: int = 128
    index_topk: int = 2048
    indexer_rope_interleave: bool = False
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: YarnScaling | None = YarnScaling(40.0, 4096, mscale_all_dim=1.0)
    max_position_embeddings: int = 163840
    tie_word_embeddings: bool = False
    bos_token_id: int = 0
    eos_token_id: int = 1
    is_fp8: bool = True
    """Linear weights are stored as FP8 e4m3 with one scale for each 128 x 128 block."""
    scale_fmt: str | None = "ue8m0"
    """`ue8m0`: activation scales are powers of two when activations are quantised."""

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if field.type == "int" and getattr(self, field.name) < least:
                raise CheckpointError(f"{field.name} is {getattr(self, field.name)}; it must be {least} or more")
        if self.n_routed_experts % self.n_group:
            raise CheckpointError(f"n_routed_experts {self.n_routed_experts} is no multiple of n_group {self.n_group}")
        if self.qk_rope_head_dim % 2 or self.index_head_dim < self.qk_rope_head_dim:
            raise CheckpointError(
                f"qk_rope_head_dim {self.qk_rope_head_dim} must be even, at most index_head_dim {self.index_head_dim}"
            )
        if self.num_experts_per_tok > self.topk_group * self.n_routed_experts // self.n_group:
            raise CheckpointError(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than the {self.topk_group} chosen groups hold"
            )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Scale of the attention scores before the softmax."""
        return self.qk_head_dim**-0.5 * (self.rope_scaling.softmax_factor if self.rope_scaling else 1.0)

    @classmethod
    def from_dir(cls, path: Path) -> DeepseekV32Config:
        file = path / "config.json"
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{file} does not exist; give a folder in Hugging Face layout") from None
        except ValueError as error:
            raise CheckpointError(f"{file} is not JSON: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeepseekV32Config:
        """Read a config.json; both `rope_scaling` and the newer `rope_parameters` are understood."""
        if not isinstance(data, Mapping):
            raise CheckpointError(f"config.json holds {str(data)[:40]!r}; it must be an object")
        if data.get("model_type") != MODEL_TYPE:
            raise CheckpointError(
                f"config.json has model_type {data.get('model_type')!r}; this runtime loads {MODEL_TYPE!r}"
            )
        quantization = _object(data, "quantization_config")
        if quantization and quantization.get("quant_method") != "fp8":
            raise CheckpointError(
                f"quant_method {quantization.get('quant_method')!r} is not supported; use fp8 or none"
            )
        block = quantization.get("weight_block_size", [128, 128])
        if block not in ([128, 128], (128, 128)):
            raise CheckpointError(f"weight_block_size {block} is not supported; use [128, 128]")
        for key, value in _ONLY.items():
            if data.get(key) not in (None, value):
                raise CheckpointError(f"config.json has {key} {data[key]!r}; this runtime computes {value!r} only")
        known = {field.name for field in fields(cls)} - {"rope_theta", "rope_scaling", "is_fp8", "scale_fmt"}
        values = {key: data[key] for key in known if data.get(key) is not None}
        for key, value in values.items():
            _check_type(key, value, type(getattr(_DEFAULTS, key)))
        theta, scaling = _rope(data)
        return cls(
            **values,
            rope_theta=theta,
            rope_scaling=scaling,
            is_fp8=bool(quantization),
            scale_fmt=quantization.get("scale_fmt"),
        )

    def to_dict(self) -> dict[str, Any]:
        """config.json of this architecture, without dtype and quantisation beyond `is_fp8`."""
        skip = {"rope_scaling", "is_fp8", "scale_fmt"}
        data: dict[str, Any] = {"architectures": ["DeepseekV32ForCausalLM"], "model_type": MODEL_TYPE}
        data |= {field.name: getattr(self, field.name) for field in fields(self) if field.name not in skip}
        data |= {"num_key_value_heads": self.num_attention_heads, "hidden_act": "silu", "attention_bias": False}
        data |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "rope_scaling": None}
        if self.rope_scaling:
            scaling = {field.name: getattr(self.rope_scaling, field.name) for field in fields(YarnScaling)}
            data["rope_scaling"] = {"type": "yarn"} | scaling
        if self.is_fp8:
            data["quantization_config"] = {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
                "scale_fmt": self.scale_fmt,
            }
        return data


_DEFAULTS = DeepseekV32Config()
# What other models of the family vary, and this one does not.
_ONLY = {
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "attention_bias": False,
    "mlp_bias": False,
}


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json has {key} {value!r}; it must be an object")
    return value


def _check_type(key: str, value: Any, kind: type) -> None:
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (kind is not bool and isinstance(value, bool)):
        raise CheckpointError(
            f"config.json has {key} {value!r}; it must be {'a number' if kind is float else kind.__name__}"
        )


def _rope(data: Mapping[str, Any]) -> tuple[float, YarnScaling | None]:
    scaling = _object(data, "rope_parameters") or _object(data, "rope_scaling")
    theta = scaling.get("rope_theta") or data.get("rope_theta") or 10000.0
    _check_type("rope_theta", theta, float)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return float(theta), None
    if kind != "yarn":
        raise CheckpointError(f"rope type {kind!r} is not supported; DeepSeek-V3.2 uses yarn")
    values = {f.name: scaling[f.name] for f in fields(YarnScaling) if scaling.get(f.name) is not None}
    for name in ("factor", "original_max_position_embeddings", *values):
        _check_type(f"{name} of yarn", values.get(name), float)
    return float(theta), YarnScaling(**values)


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
