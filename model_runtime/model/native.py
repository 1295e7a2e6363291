"""The whole model as one native call: modules enter, a `DecoderStep` over their weights leaves. No weight is copied.

It computes what `DeepseekV32Model.forward` computes with `PagedAttention`, with float32 activations on a CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from v32.kernels.decoder_step import (
    NO_MATRIX,
    CacheTensors,
    DecoderStep,
    NativeExpert,
    NativeLayer,
    NativeShape,
    matrix,
)
from v32.kernels.moe_experts import ExpertWeights
from v32.kernels.native import NativeMatrix, library
from v32.model_runtime.model.expert_cache import ExpertCache, LayerExperts
from v32.model_runtime.model.layer import DecoderLayer
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.moe import MLP, MoE
from v32.model_runtime.model.mtp import MTPLayer

if TYPE_CHECKING:
    from v32.model_runtime.model.transformer import DeepseekV32Model

BYTES_A_THREAD = 1 << 19
"""Weights that a layer has to have for each thread. Sharing less gains nothing, and where another process has one of
the cores all threads wait for the one that is there: a token of the embedded checkpoint took ten times as long."""


class NativeDecoder:
    """Runs the decoder layers of one model. Made by `of`, which says whether it can."""

    def __init__(
        self, model: DeepseekV32Model, step: DecoderStep, kept: list[Any], draft: DecoderStep | None = None
    ) -> None:
        self._step = step
        self._draft = draft
        self._kept = kept
        self._source = _Source(model)
        self._work = _bytes_a_row(model)
        self._cos = self._sin = torch.empty(0)

    @classmethod
    def of(cls, model: DeepseekV32Model) -> NativeDecoder | None:
        """None where PyTorch has to compute: no library, another device or dtype, activations that are quantised."""
        if library() is None or not _is_plain(model):
            return None
        kept: list[Any] = []
        embedding = matrix(model.embed_tokens.weight)
        pointers = _Pointers()
        decoder = [cast(DecoderLayer, layer) for layer in model.layers[: model.config.num_hidden_layers]]
        layers = [_layer(layer, kept, pointers) for layer in decoder]
        if embedding is None or any(layer is None for layer in layers):
            return None
        held = pointers if pointers.cache else None
        shape = _shape(model, len(layers))
        step = DecoderStep(shape, embedding, model.norm.weight, cast("list[NativeLayer]", layers), held)
        draft = _draft_step(model, kept)
        return cls(model, step, [*kept, model.norm.weight, model.embed_tokens.weight], draft)

    def is_current(self, *, at_a_glance: bool = False) -> bool:
        """Whether the model still has the modules and tensors that it was made of; their values may have changed.

        A glance takes a microsecond and misses what happens to few tensors of many.
        """
        return self._source.seems_unchanged() if at_a_glance else self._source.is_unchanged()

    def forward(
        self,
        model: DeepseekV32Model,
        input_ids: Tensor,
        positions: Tensor,
        slots: Sequence[int],
        end: int,
        caches: Sequence[CacheTensors],
    ) -> Tensor:
        """Hidden states after the final norm, [N, D]; `end`: all positions are smaller. See `DecoderStep`."""
        return self._run(self._step, model, input_ids, positions, slots, end, caches)

    @property
    def has_draft(self) -> bool:
        """Whether the model's first MTP layer is there."""
        return self._draft is not None

    def forward_draft(
        self,
        model: DeepseekV32Model,
        rows: Tensor,
        positions: Tensor,
        slots: Sequence[int],
        end: int,
        cache: CacheTensors,
    ) -> Tensor:
        """As `forward` for the first MTP layer, whose input rows come from `MTPLayer.join`."""
        assert self._draft is not None
        self._draft.read(rows.contiguous())
        return self._run(self._draft, model, torch.arange(len(rows)), positions, slots, end, [cache])

    def _run(
        self,
        step: DecoderStep,
        model: DeepseekV32Model,
        input_ids: Tensor,
        positions: Tensor,
        slots: Sequence[int],
        end: int,
        caches: Sequence[CacheTensors],
    ) -> Tensor:
        if end > len(self._cos):
            self._cos, self._sin = model.rotary(torch.arange(max(end, 2 * len(self._cos), 512)))
        threads = min(torch.get_num_threads(), 1 + self._work * len(input_ids) // BYTES_A_THREAD)
        return step(input_ids, positions, slots, self._cos, self._sin, caches, threads)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model has other tensors: it makes its own."""


class _Source:
    """All modules and tensors below a model: which they are, and where their values lie."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._children = [module._modules for module in modules if module._modules]
        self._tensors = [d for module in modules for d in (module._parameters, module._buffers) if d]
        self._some = self._tensors[:: max(len(self._tensors) // 4, 1)]
        self._seen, self._glimpsed = self._look(), _addresses(self._some)

    def is_unchanged(self) -> bool:
        """Half a millisecond for 2,000 tensors."""
        return self._look() == self._seen

    def seems_unchanged(self) -> bool:
        return _addresses(self._some) == self._glimpsed

    def _look(self) -> tuple[list[nn.Module | None], list[int]]:
        return list(chain.from_iterable(map(dict.values, self._children))), _addresses(self._tensors)


def _addresses(tensors: Sequence[dict[str, Any]]) -> list[int]:
    return [tensor.data_ptr() for by_name in tensors for tensor in by_name.values() if tensor is not None]


class _Pointers:
    """Where cached experts lie, by layer; the step asks for those that its tokens have chosen."""

    def __init__(self) -> None:
        self.cache: ExpertCache | None = None
        self._layers: dict[int, ctypes.Array[NativeExpert]] = {}
        self._current: dict[tuple[int, int], ExpertWeights] = {}

    @property
    def num_places(self) -> int:
        assert self.cache is not None
        return self.cache.num_places

    def array(self, experts: LayerExperts, num_experts: int) -> ctypes.Array[NativeExpert] | None:
        """A layer's experts, whose pointers are set when they are held; None if the kernels cannot read them."""
        self.cache = experts.cache
        layouts = [_pointers(experts.layout(expert)) for expert in range(num_experts)]
        if any(layout is None for layout in layouts):
            return None
        array = (NativeExpert * num_experts)(*cast("list[NativeExpert]", layouts))
        self._layers[experts.layer] = array
        return array

    def hold(self, layer: int, experts: Sequence[int]) -> None:
        assert self.cache is not None
        for expert, weights in zip(experts, self.cache.hold(layer, experts), strict=True):
            if self._current.get((layer, expert)) is not weights:
                native = _pointers(weights)
                assert native is not None
                self._layers[layer][expert] = native
                self._current[layer, expert] = weights


def _pointers(weights: ExpertWeights) -> NativeExpert | None:
    parts = [matrix(*pair) for pair in zip(weights[:3], weights[3:], strict=True)]
    return None if any(part is None for part in parts) else NativeExpert(*parts)


def _is_plain(model: DeepseekV32Model) -> bool:
    """On the CPU, norms in float32, nothing rounded to FP8 on the way."""
    norms = (model.norm.weight, *(cast(DecoderLayer, layer).input_layernorm.weight for layer in model.layers))
    is_float = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in norms)
    return is_float and not any(cast(DecoderLayer, layer).self_attn.rounds_latent for layer in model.layers)


def _draft_step(model: DeepseekV32Model, kept: list[Any]) -> DecoderStep | None:
    """The first MTP layer, where there is one that the kernels can read."""
    if len(model.layers) == model.config.num_hidden_layers:
        return None
    layer, pointers = cast(MTPLayer, model.layers[model.config.num_hidden_layers]), _Pointers()
    native, norm = _layer(layer, kept, pointers), layer.shared_head.norm.weight
    if native is None or pointers.cache is not None:
        return None
    kept.append(norm)
    return DecoderStep(_shape(model, 1), NO_MATRIX, norm, [native])


def _shape(model: DeepseekV32Model, num_layers: int) -> NativeShape:
    c = model.config
    return NativeShape(
        layers=num_layers,
        hidden=c.hidden_size,
        heads=c.num_attention_heads,
        q_lora=c.q_lora_rank,
        latent=c.kv_lora_rank,
        nope=c.qk_nope_head_dim,
        rope=c.qk_rope_head_dim,
        value=c.v_head_dim,
        index_heads=c.index_n_heads,
        index_width=c.index_head_dim,
        index_topk=c.index_topk,
        index_interleaved=c.indexer_rope_interleave,
        experts=c.n_routed_experts,
        chosen=c.num_experts_per_tok,
        groups=c.n_group,
        chosen_groups=c.topk_group,
        normalise=c.norm_topk_prob,
        routed_factor=c.routed_scaling_factor,
        eps=c.rms_norm_eps,
        softmax_scale=c.softmax_scale,
    )


def _layer(layer: DecoderLayer, kept: list[Any], pointers: _Pointers) -> NativeLayer | None:
    """A layer's pointers; what they point to is appended to `kept`. None if a tensor is not as the kernels need it."""
    mla, indexer = layer.self_attn, layer.self_attn.indexer
    native = NativeLayer()
    places = {
        "q_a": mla.q_a_proj,
        "q_b": mla.q_b_proj,
        "kv_a": mla.kv_a_proj_with_mqa,
        "kv_b": mla.kv_b_proj,
        "o": mla.o_proj,
        "index_q": indexer.wq_b,
        "index_k": indexer.wk,
        "index_weights": indexer.weights_proj,
    }
    matrices = {name: _linear(linear, kept) for name, linear in places.items()}
    vectors: dict[str, Tensor] = {
        "input_norm": layer.input_layernorm.weight,
        "q_a_norm": mla.q_a_layernorm.weight,
        "kv_a_norm": mla.kv_a_layernorm.weight,
        "post_norm": layer.post_attention_layernorm.weight,
        "index_norm_weight": indexer.k_norm.weight,
        "index_norm_bias": indexer.k_norm.bias,
    }
    block = layer.mlp
    shared = _expert(block.shared_experts if isinstance(block, MoE) else block, kept)
    native.router = NO_MATRIX
    if isinstance(block, MoE):
        router, array = matrix(block.gate.weight), _experts(block, kept, pointers)
        if router is None or array is None:
            return None
        vectors["correction_bias"] = block.gate.e_score_correction_bias
        native.router, native.experts = router, ctypes.addressof(array)
        kept += [array, block.gate.weight]
    if shared is None or any(value is None for value in matrices.values()):
        return None
    if any(vector.dtype != torch.float32 or not vector.is_contiguous() for vector in vectors.values()):
        return None
    native.shared = shared
    for name, value in matrices.items():
        setattr(native, name, value)
    for name, vector in vectors.items():
        setattr(native, name, vector.data_ptr())
    kept += vectors.values()
    return native


def _linear(linear: Linear, kept: list[Any]) -> NativeMatrix | None:
    kept += [linear.weight, linear.weight_scale_inv]
    return matrix(linear.weight, linear.weight_scale_inv) if linear.act_scale_fmt is None else None


def _expert(mlp: MLP, kept: list[Any]) -> NativeExpert | None:
    parts = [_linear(linear, kept) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    return None if any(part is None for part in parts) else NativeExpert(*parts)


def _experts(block: MoE, kept: list[Any], pointers: _Pointers) -> ctypes.Array[NativeExpert] | None:
    if block.cached_experts is not None:
        return pointers.array(block.cached_experts, block.gate.config.n_routed_experts)
    experts = [_expert(cast(MLP, expert), kept) for expert in block.experts]
    if any(expert is None for expert in experts):
        return None
    return (NativeExpert * len(experts))(*cast("list[NativeExpert]", experts))


def _bytes_a_row(model: DeepseekV32Model) -> int:
    """Bytes of weights that a token reads in the last layer."""
    layer = cast(DecoderLayer, model.layers[model.config.num_hidden_layers - 1])
    block = layer.mlp
    experts = sum(p.nbytes for p in block.experts.parameters()) if isinstance(block, MoE) else 0
    chosen = experts * model.config.num_experts_per_tok // model.config.n_routed_experts
    if isinstance(block, MoE) and block.cached_experts is not None:
        chosen = block.cached_experts.cache.place_bytes * model.config.num_experts_per_tok
    return sum(p.nbytes for p in layer.parameters()) - experts + chosen
