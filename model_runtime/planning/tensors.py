"""What a checkpoint consists of: names, dtypes and shapes, from its headers or from a configuration alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from v32.model_runtime.checkpoint.index import CheckpointIndex
from v32.model_runtime.config import DeepseekV32Config

FP8 = torch.float8_e4m3fn
SCALE = "_scale_inv"
PARTS = (
    "embedding",
    "attention",
    "indexer",
    "dense feed-forward",
    "shared experts",
    "routed experts",
    "routers and norms",
    "output head",
    "draft layers",
)
# The first that matches names the part; what none matches is a router or a norm.
_PART_OF = (
    ("embedding", re.compile(r"^model\.embed_tokens\.")),
    ("output head", re.compile(r"^lm_head\.")),
    ("routed experts", re.compile(r"\.mlp\.experts\.")),
    ("shared experts", re.compile(r"\.mlp\.shared_experts\.")),
    ("dense feed-forward", re.compile(r"\.mlp\.(gate|up|down)_proj\.")),
    ("indexer", re.compile(r"\.indexer\.")),
    ("attention", re.compile(r"_proj(_with_mqa)?\.")),
)

_NUMBER = re.compile(r"\.(\d+)\.")


class PlannedTensor(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_values * self.dtype.itemsize


def stored_tensors(index: CheckpointIndex) -> list[PlannedTensor]:
    """The tensors of a folder, as its headers say."""
    return [PlannedTensor(info.name, info.dtype, info.shape) for info in index.values()]


def published_tensors(config: DeepseekV32Config) -> Iterator[PlannedTensor]:
    """The tensors that a checkpoint of this configuration has in the published form, draft layers included."""
    vocab, size, depth = config.vocab_size, config.hidden_size, config.num_hidden_layers
    yield _plain("model.embed_tokens", vocab, size)
    for number in range(depth + config.num_nextn_predict_layers):
        yield from _layer(config, number)
    for number in range(depth, depth + config.num_nextn_predict_layers):
        layer = f"model.layers.{number}"
        yield _plain(f"{layer}.embed_tokens", vocab, size)
        yield from (_plain(f"{layer}.{name}", size) for name in ("enorm", "hnorm", "shared_head.norm"))
        yield _plain(f"{layer}.eh_proj", size, 2 * size)
        yield _plain(f"{layer}.shared_head.head", vocab, size)
    yield _plain("model.norm", size)
    if not config.tie_word_embeddings:
        yield _plain("lm_head", vocab, size)


def part_of(name: str, config: DeepseekV32Config) -> str:
    """Which of `PARTS` a tensor belongs to."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= config.num_hidden_layers:
        return "draft layers"
    return next((part for part, pattern in _PART_OF if pattern.search(name)), "routers and norms")


class TensorGroup(NamedTuple):
    """`number` tensors that differ in their layer or expert only; `tensor` is the first of them."""

    tensor: PlannedTensor
    number: int
    part: str


def grouped(tensors: Iterable[PlannedTensor], config: DeepseekV32Config) -> list[TensorGroup]:
    """A hundred thousand tensors as some dozens of groups."""
    groups: dict[tuple[str, bool, torch.dtype, tuple[int, ...]], TensorGroup] = {}
    for tensor in tensors:
        numbers = _NUMBER.findall(tensor.name)
        is_draft = bool(numbers) and int(numbers[0]) >= config.num_hidden_layers
        key = (_NUMBER.sub(".", tensor.name), is_draft, tensor.dtype, tensor.shape)
        group = groups.get(key)
        part = group.part if group else part_of(tensor.name, config)
        groups[key] = TensorGroup(group.tensor if group else tensor, group.number + 1 if group else 1, part)
    return list(groups.values())


def total_bytes(groups: Iterable[TensorGroup]) -> int:
    """Bytes of the tensors in the files."""
    return sum(group.number * group.tensor.num_bytes for group in groups)


def _layer(config: DeepseekV32Config, number: int) -> Iterator[PlannedTensor]:
    layer, size = f"model.layers.{number}", config.hidden_size
    yield _plain(f"{layer}.input_layernorm", size)
    yield from _attention(config, f"{layer}.self_attn")
    yield _plain(f"{layer}.post_attention_layernorm", size)
    if number < config.first_k_dense_replace:
        yield from _feed_forward(config, f"{layer}.mlp", config.intermediate_size)
        return
    yield _plain(f"{layer}.mlp.gate", config.n_routed_experts, size)
    yield PlannedTensor(f"{layer}.mlp.gate.e_score_correction_bias", torch.float32, (config.n_routed_experts,))
    for expert in range(config.n_routed_experts):
        yield from _feed_forward(config, f"{layer}.mlp.experts.{expert}", config.moe_intermediate_size)
    shared = config.moe_intermediate_size * config.n_shared_experts
    yield from _feed_forward(config, f"{layer}.mlp.shared_experts", shared)


def _attention(config: DeepseekV32Config, name: str) -> Iterator[PlannedTensor]:
    size, heads, q_rank, kv_rank = (
        config.hidden_size,
        config.num_attention_heads,
        config.q_lora_rank,
        config.kv_lora_rank,
    )
    yield from _linear(config, f"{name}.q_a_proj", q_rank, size)
    yield _plain(f"{name}.q_a_layernorm", q_rank)
    yield from _linear(config, f"{name}.q_b_proj", heads * config.qk_head_dim, q_rank)
    yield from _linear(config, f"{name}.kv_a_proj_with_mqa", kv_rank + config.qk_rope_head_dim, size)
    yield _plain(f"{name}.kv_a_layernorm", kv_rank)
    yield from _linear(config, f"{name}.kv_b_proj", heads * (config.qk_nope_head_dim + config.v_head_dim), kv_rank)
    yield from _linear(config, f"{name}.o_proj", size, heads * config.v_head_dim)
    yield from _linear(config, f"{name}.indexer.wq_b", config.index_n_heads * config.index_head_dim, q_rank)
    yield from _linear(config, f"{name}.indexer.wk", config.index_head_dim, size)
    yield _plain(f"{name}.indexer.k_norm", config.index_head_dim)
    yield PlannedTensor(f"{name}.indexer.k_norm.bias", torch.bfloat16, (config.index_head_dim,))
    yield _plain(f"{name}.indexer.weights_proj", config.index_n_heads, size)


def _feed_forward(config: DeepseekV32Config, name: str, width: int) -> Iterator[PlannedTensor]:
    yield from _linear(config, f"{name}.gate_proj", width, config.hidden_size)
    yield from _linear(config, f"{name}.up_proj", width, config.hidden_size)
    yield from _linear(config, f"{name}.down_proj", config.hidden_size, width)


def _linear(config: DeepseekV32Config, name: str, rows: int, columns: int) -> Iterator[PlannedTensor]:
    if not config.is_fp8:
        yield _plain(name, rows, columns)
        return
    yield PlannedTensor(f"{name}.weight", FP8, (rows, columns))
    yield PlannedTensor(f"{name}.weight{SCALE}", torch.float32, (-(-rows // 128), -(-columns // 128)))


def _plain(name: str, *shape: int) -> PlannedTensor:
    return PlannedTensor(f"{name}.weight", torch.bfloat16, shape)
