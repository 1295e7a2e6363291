"""How long prefill and decoding take: bytes and operations counted, divided by a device's rates.

    a part of a step = max(bytes read / bandwidth, operations / arithmetic)
    a step = weights + attention + step_seconds + layers x layer_seconds + experts read from elsewhere

Counted are the weights that the batch touches (of routed experts: those that are chosen), the index keys of the whole
context, the latents of the selected positions, and the arithmetic of all of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from v32.model_runtime.cache.pages import KVLayout
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.planning.hardware import Rates
from v32.model_runtime.planning.memory import Weights


class StepCost(NamedTuple):
    """Seconds of one forward pass of one rank."""

    memory: float
    """Of the parts that wait for memory."""
    arithmetic: float
    """Of the parts that wait for arithmetic."""
    starting: float
    experts: float

    @property
    def seconds(self) -> float:
        return sum(self)

    @property
    def limit(self) -> str:
        """What takes most of the time."""
        words = ("reading memory", "arithmetic", "starting operations", "reading experts")
        return max(zip(self, words, strict=True))[1]


class ExpertPlaces(NamedTuple):
    """So many routed experts are in memory, those used last; the others are read when tokens choose them."""

    number: int
    expert_bytes: int
    bytes_per_second: float

    def seconds(self, config: DeepseekV32Config, num_tokens: int) -> float:
        """What a pass waits for, if experts are chosen evenly: one that is chosen at random is there as often as there
        are places; but none is if a pass by itself fills them all."""
        layers = config.num_hidden_layers - config.first_k_dense_replace
        touched = layers * touched_experts(config, num_tokens)
        present = self.number / (layers * config.n_routed_experts) if touched <= self.number else 0.0
        return touched * (1 - min(present, 1.0)) * self.expert_bytes / self.bytes_per_second


class Workload(NamedTuple):
    """`new_tokens` of each of `sequences` pass at once; each sees `context` positions at the end."""

    new_tokens: int
    context: int
    sequences: int = 1

    @property
    def num_tokens(self) -> int:
        return self.new_tokens * self.sequences


def step_cost(
    config: DeepseekV32Config,
    weights: Weights,
    rates: Rates,
    work: Workload,
    *,
    ranks: int = 1,
    kv_dtype: torch.dtype = torch.float32,
    places: ExpertPlaces | None = None,
) -> StepCost:
    """The cost of one pass; `weights` are all of one rank, `ranks` how many share the model."""
    weight_bytes = _weight_bytes(config, weights, work.num_tokens, ranks)
    parts = (
        (weight_bytes, _weight_flops(config, weights, work)),
        (_cache_bytes(config, work, kv_dtype), _attention_flops(config, work, ranks)),
    )
    waits = [(size / rates.weight_bytes_per_second, flops / rates.flops_per_second) for size, flops in parts]
    return StepCost(
        sum(memory for memory, arithmetic in waits if memory > arithmetic),
        sum(arithmetic for memory, arithmetic in waits if memory <= arithmetic),
        rates.step_seconds + rates.layer_seconds * config.num_hidden_layers,
        places.seconds(config, work.num_tokens) if places else 0.0,
    )


def prefill_seconds(
    config: DeepseekV32Config, weights: Weights, rates: Rates, new_tokens: int, context: int, *, chunk: int,
    ranks: int = 1, kv_dtype: torch.dtype = torch.float32, places: ExpertPlaces | None = None,
) -> float:  # fmt: skip
    """Seconds until `new_tokens` have passed in chunks; the last sees `context` positions."""
    seconds, start = 0.0, context - new_tokens
    for done in range(0, new_tokens, chunk):
        size = min(chunk, new_tokens - done)
        work = Workload(size, start + done + size)
        seconds += step_cost(config, weights, rates, work, ranks=ranks, kv_dtype=kv_dtype, places=places).seconds
    return seconds


def touched_experts(config: DeepseekV32Config, num_tokens: int, ranks: int = 1) -> float:
    """Routed experts of the busiest rank that a batch needs, if it chooses evenly.

    The mean over ranks, plus the usual spread of the fullest of `ranks` bins while tokens are few.
    """
    count, chosen = config.n_routed_experts, config.num_experts_per_tok
    mean = count * (1 - (1 - chosen / count) ** num_tokens) / ranks
    spread = math.sqrt(2 * mean * math.log(ranks)) if ranks > 1 else 0.0
    return min(mean + spread, count / ranks, float(chosen * num_tokens))


def active_parameters(config: DeepseekV32Config, whole: Weights) -> int:
    """Weights that one token is multiplied with; `whole` are those of a single rank."""
    routed = whole.part("routed experts").num_values * config.num_experts_per_tok // config.n_routed_experts
    return _always(whole) + whole.part("output head").num_values + routed


def _always(weights: Weights) -> int:
    """Weights that every token is multiplied with, the head apart."""
    apart = ("embedding", "routed experts", "output head", "draft layers")
    return sum(part.num_values for part in weights.parts if part.name not in apart)


def _weight_bytes(config: DeepseekV32Config, weights: Weights, num_tokens: int, ranks: int) -> float:
    routed = weights.part("routed experts").loaded_bytes
    local = config.n_routed_experts / ranks
    rest = weights.loaded_bytes - weights.part("embedding").loaded_bytes - routed
    if config.tie_word_embeddings:
        rest += weights.part("embedding").loaded_bytes
    return rest + routed * touched_experts(config, num_tokens, ranks) / local


def _cache_bytes(config: DeepseekV32Config, work: Workload, dtype: torch.dtype) -> float:
    """Index keys of the whole context once a sequence, latents of what each decoding token selects."""
    layout = KVLayout.of_model(config, dtype)
    keys = work.context * config.index_head_dim if work.context > config.index_topk else 0
    seen = min(work.context, config.index_topk) * layout.record_width * layout.dtype.itemsize
    return (
        work.sequences
        * config.num_hidden_layers
        * (keys * layout.index_dtype.itemsize + seen * min(work.new_tokens, 8))
    )


def _weight_flops(config: DeepseekV32Config, weights: Weights, work: Workload) -> float:
    routed = weights.part("routed experts").num_values * config.num_experts_per_tok / config.n_routed_experts
    return (
        2 * work.num_tokens * (_always(weights) + routed) + 2 * work.sequences * weights.part("output head").num_values
    )


def _attention_flops(config: DeepseekV32Config, work: Workload, ranks: int) -> float:
    """Scores of the indexer (whole on every rank) and the absorbed attention of this rank's heads."""
    middle = max(work.context - work.new_tokens / 2, 1)
    indexer = 2 * config.index_n_heads * config.index_head_dim * middle if work.context > config.index_topk else 0
    seen = min(middle, config.index_topk)
    heads = config.num_attention_heads / ranks
    attention = 2 * heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim) * seen
    return work.num_tokens * config.num_hidden_layers * (indexer + attention)
