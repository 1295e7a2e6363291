"""DeepseekV32ForCausalLM: token ids and positions in, hidden states and logits out; no cache and no text here."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from v32.kernels.float_gemm import float_gemm
from v32.kernels.fp8_gemm import ActScaleFormat
from v32.model_runtime.config import DeepseekV32Config, Numerics
from v32.model_runtime.model.attention import Attention, WholeModel
from v32.model_runtime.model.embedding import embedding
from v32.model_runtime.model.expert_cache import ExpertCache
from v32.model_runtime.model.indexer import Indexer
from v32.model_runtime.model.layer import DecoderLayer
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.mla import MLA
from v32.model_runtime.model.moe import MoE
from v32.model_runtime.model.mtp import MTPLayer
from v32.model_runtime.model.native import NativeDecoder
from v32.model_runtime.model.norm import RMSNorm
from v32.model_runtime.model.rotary import inverse_frequencies, rotary_angles


class DeepseekV32Model(nn.Module):
    """Embedding, decoder layers, final norm; MTP layers, if asked for, stand behind the decoder layers."""

    def __init__(self, config: DeepseekV32Config, *, with_mtp: bool) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config)
        depth = config.num_hidden_layers
        extra = config.num_nextn_predict_layers if with_mtp else 0
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(depth))
        self.layers.extend(MTPLayer(config, depth + i) for i in range(extra))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._frequencies = inverse_frequencies(config)
        self.uses_native = True
        """False: PyTorch computes even where the native kernels could."""
        self._native: NativeDecoder | None = None

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of positions [N], float32 [N, rope/2] on their device."""
        if self._frequencies.device != positions.device:
            self._frequencies = self._frequencies.to(positions.device)
        scaling = self.config.rope_scaling
        return rotary_angles(positions, self._frequencies, scaling.amplitude if scaling else 1.0)

    @property
    def native(self) -> NativeDecoder | None:
        """The same layers as one native call, where there is one for this device and these dtypes."""
        return self.find_native()

    def find_native(self, *, goes_on: bool = False) -> NativeDecoder | None:
        """`native`. `goes_on`: the keys in the cache come from these very weights, so a glance at them is enough."""
        if not self.uses_native:
            return None
        if self._native is None or not self._native.is_current(at_a_glance=goes_on):
            self._native = NativeDecoder.of(self)
        return self._native

    def forward(self, input_ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        if hasattr(attention, "run"):  # isinstance of a protocol takes longer than a small layer
            hidden = cast(WholeModel, attention).run(self, input_ids, positions)
            if hidden is not None:
                return hidden
        cos, sin = self.rotary(positions)
        x = self.embed_tokens(input_ids).to(self.norm.weight.dtype)
        for layer in self.layers[: self.config.num_hidden_layers]:
            x = layer(x, cos, sin, attention)
        return self.norm(x)


class DeepseekV32ForCausalLM(nn.Module):
    """Parameter names equal the tensor names of the published checkpoints."""

    def __init__(self, config: DeepseekV32Config, *, with_mtp: bool = False) -> None:
        super().__init__()
        self.config = config
        self.model = DeepseekV32Model(config, with_mtp=with_mtp)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = cast(nn.Parameter, self.model.embed_tokens.weight)

    def forward(self, input_ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Flat batch: input_ids int64 [N], positions int64 [N] -> hidden states after the final norm [N, D]."""
        return cast(Tensor, self.model(input_ids, positions, attention))

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [M, D] -> float32 [M, vocab_size]."""
        head = self.lm_head
        return float_gemm(hidden, head.weight) if head.weight_scale_inv is None else head(hidden.float())

    def set_numerics(self, numerics: Numerics) -> None:
        """Choose how activations are rounded.

        `deepseek` quantises the inputs of FP8 weights in blocks of 128, passes the KV latent through FP8 and back, and
        the index queries and keys through a Hadamard transform and FP8. Weights are not touched.
        """
        size = self.config.index_head_dim
        if numerics == "deepseek" and size & (size - 1):
            raise ValueError(f"numerics='deepseek' needs an index_head_dim that is a power of two, not {size}")
        rounds = numerics == "deepseek"
        self.model._native = None
        scale_fmt: ActScaleFormat = "ue8m0" if self.config.scale_fmt == "ue8m0" else "float32"
        for module in self.modules():
            if isinstance(module, Linear):
                module.act_scale_fmt = scale_fmt if rounds else None
            elif isinstance(module, MLA):
                module.rounds_latent = rounds
            elif isinstance(module, Indexer):
                module.rounds_heads = rounds

    @property
    def expert_cache(self) -> ExpertCache | None:
        """Of the routed experts, where they are not all in memory."""
        blocks = (layer.mlp for layer in self.model.layers)
        return next((b.cached_experts.cache for b in blocks if isinstance(b, MoE) and b.cached_experts), None)

    @property
    def is_recordable(self) -> bool:
        """Whether a pass on a GPU waits for nothing on the host, so that a CUDA graph can hold it."""
        return self.expert_cache is None

    @property
    def mtp_layers(self) -> list[MTPLayer]:
        return [cast(MTPLayer, layer) for layer in self.model.layers[self.config.num_hidden_layers :]]
