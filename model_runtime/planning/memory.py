"""How many bytes a model takes once it is loaded: weights by part, the cache, and what a forward pass needs beside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch

from v32.model_runtime.cache.pages import PAGE_SIZE, KVLayout
from v32.model_runtime.checkpoint.fp8 import num_blocks
from v32.model_runtime.checkpoint.loader import dequantizes_by_default, has_native_kernels
from v32.model_runtime.checkpoint.slots import KEPT_FLOAT32
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.engine.paged_attention import BLOCK_ELEMENTS
from v32.model_runtime.model.sharding import Part, Shard, whole
from v32.model_runtime.planning.tensors import FP8, PARTS, SCALE, PlannedTensor, TensorGroup

_SCORED_ROWS = 64
"""Whose index scores the native step keeps at a time."""
_AS_STORED = (torch.bfloat16, torch.float32)
_PROCESS_BYTES = {"cpu": 240 << 20, "cuda": 600 << 20}
"""Python with torch, tokenizer and grammar on a CPU (measured); a CUDA context with its libraries (assumed)."""


@dataclass(frozen=True, slots=True)
class WeightForm:
    """The form that weights take in memory."""

    dtype: torch.dtype
    dequantize: bool
    """FP8 weights become `dtype` while loading."""
    has_fp8: bool = True
    is_native: bool = False
    """The native kernels read bfloat16 and float32 matrices as they are stored, from private memory."""
    has_gpu_kernels: bool = False
    """FP8 weights are decoded in registers."""

    @property
    def keeps_fp8(self) -> bool:
        return self.has_fp8 and not self.dequantize

    @classmethod
    def of(cls, groups: Iterable[TensorGroup], config: DeepseekV32Config, kind: str) -> WeightForm:
        """What the loader chooses unless it is told otherwise; `kind` is `cpu` or `cuda`."""
        dtype = torch.float32 if kind == "cpu" else torch.bfloat16
        loaded = [group for group in groups if is_loaded(group, config)]
        num_weights = sum(group.number * group.tensor.num_values for group in loaded)
        has_fp8 = any(group.tensor.dtype == FP8 for group in loaded)
        dequantize = has_fp8 and dequantizes_by_default(num_weights, kind, dtype)
        return cls(dtype, dequantize, has_fp8, has_native_kernels(kind, dtype), kind == "cuda")


class PartMemory(NamedTuple):
    """One part of the model: bytes in the files, and bytes in the memory of one device."""

    name: str
    stored_bytes: int
    loaded_bytes: int
    num_values: int
    """Weights that the device holds, scales not counted."""


class Weights(NamedTuple):
    """All parts, as one rank holds them."""

    parts: tuple[PartMemory, ...]
    mapped_bytes: int
    """Of the loaded bytes, those that stay mapped from their file: page cache, not private memory."""
    converted_values: int
    """Weights that change their form while loading."""
    read_bytes: int
    """What one rank reads of the files."""

    @property
    def loaded_bytes(self) -> int:
        return sum(part.loaded_bytes for part in self.parts)

    def with_experts(self, num_bytes: int) -> Weights:
        """The same with so many bytes of routed experts in memory."""
        routed = self.part("routed experts")
        held = routed._replace(loaded_bytes=num_bytes)
        return self._replace(parts=tuple(held if part is routed else part for part in self.parts))

    def part(self, name: str) -> PartMemory:
        return next((part for part in self.parts if part.name == name), PartMemory(name, 0, 0, 0))


def is_loaded(group: TensorGroup, config: DeepseekV32Config) -> bool:
    """Draft layers and buffers of other programs stay on disk; scales come with their weights."""
    name = group.tensor.name
    is_tied_head = config.tie_word_embeddings and name == "lm_head.weight"
    return not (name.endswith(SCALE) or "rotary_emb" in name or is_tied_head or group.part == "draft layers")


def weights(
    groups: Iterable[TensorGroup],
    config: DeepseekV32Config,
    form: WeightForm,
    shard: Shard = Shard(),  # noqa: B008 (immutable)
    kind: str = "cpu",
) -> Weights:
    """What one rank holds. The last rank holds the most: `Shard.span` rounds down."""
    stored, loaded, values = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    mapped = converted = read = 0
    for tensor, count, part in groups:
        stored[part] += count * tensor.num_bytes
        if not is_loaded(TensorGroup(tensor, count, part), config):
            continue
        held, held_count = _held(tensor, count, part, config, shard)
        dtype, num_values = _loaded_dtype(tensor, form, held.is_on_blocks), held_count * held.num_values
        values[part] += num_values
        loaded[part] += num_values * dtype.itemsize
        read += num_values * tensor.dtype.itemsize
        if tensor.dtype == FP8:
            scales = held_count * prod(num_blocks(span.stop - span.start) for span in (held.rows, held.columns) if span)
            loaded[part] += scales * 4 if dtype == FP8 else 0
            read += scales * 4
        if dtype != tensor.dtype:
            converted += num_values
        elif kind == "cpu" and not (form.is_native and len(tensor.shape) > 1):
            mapped += num_values * dtype.itemsize
    parts = tuple(PartMemory(part, stored[part], loaded[part], values[part]) for part in PARTS if stored[part])
    return Weights(parts, mapped, converted, read)


def _held(tensor: PlannedTensor, count: int, part: str, config: DeepseekV32Config, shard: Shard) -> tuple[Part, int]:
    """What a rank holds of each tensor of a group, and of how many of them."""
    if part == "routed experts":
        experts = shard.experts(config)
        return whole(tensor.shape), count * (experts.stop - experts.start) // config.n_routed_experts
    held = shard.part(tensor.name, tensor.shape, config)
    assert held is not None
    return held, count


def _loaded_dtype(tensor: PlannedTensor, form: WeightForm, is_on_blocks: bool) -> torch.dtype:
    if tensor.dtype == FP8:
        return FP8 if form.keeps_fp8 and is_on_blocks else form.dtype
    if KEPT_FLOAT32.search(tensor.name):
        return torch.float32
    is_read_as_stored = form.is_native and len(tensor.shape) > 1
    return tensor.dtype if is_read_as_stored and tensor.dtype in _AS_STORED else form.dtype


def kv_token_bytes(config: DeepseekV32Config, dtype: torch.dtype) -> int:
    return KVLayout.of_model(config, dtype).token_bytes


def kv_bytes(config: DeepseekV32Config, dtype: torch.dtype, context: int) -> int:
    """Whole pages of one sequence."""
    return -(-context // PAGE_SIZE) * PAGE_SIZE * kv_token_bytes(config, dtype)


def workspace_bytes(
    config: DeepseekV32Config, form: WeightForm, batch_tokens: int, context: int, ranks: int = 1
) -> int:
    """What is held at the peak beside weights and cache, while loading or in a pass; an estimate, see the tests.

    A pass: scores of a block of queries (at most BLOCK_ELEMENTS, two copies), the activations of a chunk, the output
    head in float32 where it is stored in less. Loading: one weight in float32 and its indices. Where PyTorch reads FP8
    weights, they are dequantised one by one in every pass. The kernels of a GPU read head and FP8 weights as they are;
    the native step has its own scratch memory.
    """
    chunk = min(batch_tokens, context)
    if form.is_native:
        return _native_workspace_bytes(config, chunk, context)
    scores = min(BLOCK_ELEMENTS, chunk * context * config.num_attention_heads // ranks) * 4 * 2
    widest = max(
        config.intermediate_size,
        config.moe_intermediate_size * (config.num_experts_per_tok + config.n_shared_experts),
        config.num_attention_heads * config.qk_head_dim,
    )
    activations = chunk * (2 * config.hidden_size + widest // ranks) * 4
    head = (
        0
        if form.dtype == torch.float32 or form.has_gpu_kernels
        else config.vocab_size // ranks * config.hidden_size * 4
    )
    largest_weight = config.hidden_size * max(config.intermediate_size, config.num_attention_heads * config.v_head_dim)
    converted = largest_weight // ranks * 8 if form.has_fp8 and not form.has_gpu_kernels else 0
    working = scores + activations + head
    return max(working, converted) if form.dequantize else working + converted


def absorbed_bytes(config: DeepseekV32Config, dtype: torch.dtype) -> int:
    """kv_b of all layers as floats: where it is FP8 the absorbed attention, but for the native step, keeps a copy."""
    rows = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
    return config.num_hidden_layers * rows * config.kv_lora_rank * dtype.itemsize


def _native_workspace_bytes(config: DeepseekV32Config, rows: int, context: int) -> int:
    """Scratch memory of `kernels/decoder_step` for so many rows, and the hidden states that it returns."""
    heads, width = config.num_attention_heads, config.num_attention_heads * config.v_head_dim
    record, index = config.kv_lora_rank + config.qk_rope_head_dim, config.index_head_dim + 1
    routed = config.num_experts_per_tok + config.n_shared_experts
    floats = 7 * config.hidden_size + 4 * config.q_lora_rank + 2 * record + (config.index_n_heads + 1) * index
    floats += heads * (config.qk_head_dim + record + config.kv_lora_rank) + 4 * width + config.n_routed_experts
    floats += max(config.intermediate_size, routed * config.moe_intermediate_size)
    if context > config.index_topk:
        floats += 2 * config.index_topk  # int64
    return rows * floats * 4 + min(rows, _SCORED_ROWS) * context * 4


def is_native(dtype: torch.dtype) -> bool:
    """Whether the native step computes on this CPU."""
    return has_native_kernels("cpu", dtype)


def process_bytes(kind: str) -> int:
    """What the program itself takes, without a model."""
    return _PROCESS_BYTES[kind]
