"""From a folder in Hugging Face layout to a model: names, shapes and values are checked, nothing is converted first.

    1  config.json     -> a model without memory (meta device)
    2  headers         -> every tensor has its place, every place its tensor, dtypes and shapes fit
    3  tensor by tensor: mapped, checked, brought to its dtype and device, put in its place

Tensors that need no change stay mapped from their file, so a second start costs no reading.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from v32.kernels.fp8_gemm import dequantize as dequantize_blocks
from v32.kernels.native import library
from v32.model_runtime.checkpoint.arena import Arena
from v32.model_runtime.checkpoint.expert_files import ExpertFiles
from v32.model_runtime.checkpoint.host_experts import HostExperts
from v32.model_runtime.checkpoint.index import CheckpointIndex, TensorInfo
from v32.model_runtime.checkpoint.manifest import Manifest
from v32.model_runtime.checkpoint.slots import (
    FLOATS,
    KEPT_FLOAT32,
    ROUTED_EXPERT,
    Slot,
    check_finite,
    check_fp8,
    is_mtp,
    slots_of,
)
from v32.model_runtime.config import DeepseekV32Config, Numerics
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.model.expert_cache import ExpertCache, LayerExperts
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.moe import MoE
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

Progress = Callable[[int, int], None]
"""Called with the bytes loaded so far and in all."""

_TRIM_BYTES = 16 << 20
_AS_STORED = (torch.float32, torch.bfloat16)


def load_checkpoint(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    dequantize: bool | Literal["auto"] = "auto",
    mtp: bool | Literal["auto"] = False,
    numerics: Numerics = "float",
    verify: bool = True,
    expert_places: int | None = None,
    expert_cache_bytes: int | None = None,
    progress: Progress | None = None,
) -> DeepseekV32ForCausalLM:
    """Load a checkpoint; raises `CheckpointError` naming the file or tensor and the remedy.

    `dtype` of activations and of weights that are not FP8: float32 on a CPU, else bfloat16, unless given. FP8 weights
    stay FP8, or become `dtype` with `dequantize`; "auto" does that on a CPU without native kernels when it takes at
    most half of the memory. With native kernels bfloat16 matrices stay as they are, too: sums are float32 anyway.
    `mtp` loads the draft layers behind the last one ("auto": if there are any). `numerics`: see `set_numerics`.
    `verify` looks for NaN and for scales that are not positive; it reads every byte. `expert_places`: so many routed
    experts are in memory at a time, as they are stored; they are read, and checked, when tokens choose them.
    `expert_cache_bytes`: of the device for routed experts, all of which lie in host memory.
    """
    folder, device = Path(folder), torch.device(device)
    dtype = dtype or default_dtype(device)
    if dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype}; choose float32, bfloat16 or float16")
    if numerics == "deepseek" and dequantize is True:
        raise ValueError("numerics='deepseek' multiplies FP8 by FP8; leave the weights FP8 (dequantize=False)")
    config = DeepseekV32Config.from_dir(folder)
    index = CheckpointIndex.from_dir(folder)
    Manifest.check(index)
    model = _model_without_memory(config, with_mtp=_has_mtp(config, index) if mtp == "auto" else mtp)
    slots, streamed = list(slots_of(model, index)), list[Slot]()
    if expert_places is not None or expert_cache_bytes is not None:
        dequantize = False
        streamed = [slot for slot in slots if ROUTED_EXPERT.search(slot.info.name)]
        slots = [slot for slot in slots if not ROUTED_EXPERT.search(slot.info.name)]
    if dequantize == "auto":
        num_weights = sum(slot.info.num_bytes // slot.info.dtype.itemsize for slot in slots)
        dequantize = numerics == "float" and dequantizes_by_default(num_weights, device.type, dtype)
    done, total = 0, sum(slot.num_bytes for slot in slots)
    arena = Arena(total) if not dequantize and has_native_kernels(device.type, dtype) else None
    filler = _Filler(index, device, dtype, dequantize, verify, arena, maps=arena is None and expert_places is None)
    for slot in slots:
        filler.fill(slot)
        if done // _TRIM_BYTES != (done + slot.num_bytes) // _TRIM_BYTES:
            _trim_heap()
        done += slot.num_bytes
        if progress:
            progress(done, total)
    if expert_cache_bytes is not None and streamed:
        _offload_experts(model, HostExperts(ExpertFiles(index, streamed), device), expert_cache_bytes, device)
    elif expert_places is not None and streamed:
        _stream_experts(model, ExpertFiles(index, streamed), expert_places)
    _share(model)
    model.set_numerics(numerics)
    return model.requires_grad_(False).eval()


def default_dtype(device: torch.device) -> torch.dtype:
    """Of activations, and of weights that are not FP8."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def dequantizes_by_default(num_weights: int, device_type: str, dtype: torch.dtype) -> bool:
    """What `dequantize="auto"` means: on a CPU whose native kernels do not read FP8, if all weights in `dtype` take at
    most half of the memory."""
    if has_native_kernels(device_type, dtype):
        return False
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return device_type == "cpu" and num_weights * dtype.itemsize <= memory // 2


def has_native_kernels(device_type: str, dtype: torch.dtype) -> bool:
    """Whether native kernels compute, which read FP8 and bfloat16 weights as they are."""
    return device_type == "cpu" and dtype == torch.float32 and library() is not None


def check_tokenizer(config: DeepseekV32Config, num_tokens: int, name: str = "the tokenizer") -> None:
    """Raise `CheckpointError` if a tokenizer can produce ids that the model has no embedding for."""
    if num_tokens > config.vocab_size:
        raise CheckpointError(
            f"{name} has {num_tokens} tokens, but vocab_size is {config.vocab_size}: it belongs to another model; "
            "use the tokenizer.json that came with the weights"
        )


@dataclass(frozen=True, slots=True)
class _Filler:
    """How tensors are brought into the model."""

    index: CheckpointIndex
    device: torch.device
    dtype: torch.dtype
    dequantize: bool
    verify: bool
    arena: Arena | None  # of weights that native kernels read as they are
    maps: bool  # whether tensors may stay mapped from their files

    def fill(self, slot: Slot) -> None:
        tensor = self._read(slot.info)
        if slot.scale is None:
            slot.put(self._float(slot, tensor))
        else:
            self._put_codes(slot, tensor, self._read(slot.scale).to(self.device, torch.float32))
        placed: Tensor = getattr(slot.module, slot.attribute)
        if self.maps and placed.data_ptr() != tensor.data_ptr():
            self.index.release(slot.info.name)  # else the files stay in memory beside what was made of them

    def _read(self, info: TensorInfo) -> Tensor:
        """Mapped, or in the arena, from where native kernels read matrices as they are stored."""
        if self.maps:
            return self.index.read(info.name)
        empty = torch.empty if self.arena is None or info.dtype == torch.float16 else self.arena.empty
        return self.index.read_into(info.name, empty(info.shape, dtype=info.dtype))

    def _put_codes(self, slot: Slot, tensor: Tensor, scale: Tensor) -> None:
        codes = tensor.to(self.device)
        if self.verify:
            check_fp8(slot.info, codes, scale)
        if self.dequantize:
            slot.put(dequantize_blocks(codes, scale, self.dtype))
        else:
            slot.put(codes)
            slot.put(scale, is_scale=True)

    def _float(self, slot: Slot, tensor: Tensor) -> Tensor:
        info, is_matrix = slot.info, isinstance(slot.module, (Linear, nn.Embedding))
        if self.verify:
            check_finite(info, tensor)
        if KEPT_FLOAT32.search(info.name):
            return tensor.to(self.device, torch.float32)
        if self.arena and is_matrix and tensor.dtype in _AS_STORED:
            return tensor
        return tensor.to(self.device, self.dtype)


def _stream_experts(model: DeepseekV32ForCausalLM, files: ExpertFiles, num_places: int) -> None:
    """Let the model's layers take their experts from the files."""
    memory = Arena(num_places * files.place_bytes)
    places = memory.empty((num_places, files.place_bytes), torch.uint8)
    _take_from(ExpertCache(files, places, on_shrink=memory.give_back), model)


def _offload_experts(model: DeepseekV32ForCausalLM, experts: HostExperts, num_bytes: int, device: torch.device) -> None:
    """Let the model's layers take their experts from host memory through so many bytes of the device."""
    num_places = min(num_bytes // experts.place_bytes, experts.num_experts)
    if num_places < 1:
        raise CheckpointError(
            f"an expert cache of {num_bytes:,} bytes holds no expert; the smallest that works has "
            f"{experts.place_bytes:,} bytes"
        )
    places = torch.empty(num_places, experts.place_bytes, dtype=torch.uint8, device=device)
    _take_from(ExpertCache(experts, places), model)


def _take_from(cache: ExpertCache, model: DeepseekV32ForCausalLM) -> None:
    for number, layer in enumerate(model.model.layers):
        if isinstance(layer.mlp, MoE):
            layer.mlp.experts = nn.ModuleList()
            layer.mlp.cached_experts = LayerExperts(cache, number)


def _model_without_memory(config: DeepseekV32Config, *, with_mtp: bool) -> DeepseekV32ForCausalLM:
    with torch.device("meta"):
        return DeepseekV32ForCausalLM(config, with_mtp=with_mtp)


def _has_mtp(config: DeepseekV32Config, index: CheckpointIndex) -> bool:
    return any(is_mtp(config, name) for name in index)


def _share(model: DeepseekV32ForCausalLM) -> None:
    """One memory for the embedding and the head where config ties them, and for the copies of both in draft layers."""
    embed, head = model.model.embed_tokens, model.lm_head
    if model.config.tie_word_embeddings:
        if not (head.weight.is_meta or head.weight is embed.weight or torch.equal(head.weight, embed.weight)):
            raise CheckpointError(
                "lm_head.weight differs from model.embed_tokens.weight, but config.json sets tie_word_embeddings; "
                "set it to false"
            )
        _alias(head, embed)
    for layer in model.mtp_layers:
        _alias(layer.embed_tokens, embed)
        _alias(layer.shared_head.head, head)


def _alias(copy: Linear | nn.Embedding, original: Linear | nn.Embedding) -> None:
    if copy.weight.is_meta or torch.equal(copy.weight, original.weight):
        copy.register_parameter("weight", cast(nn.Parameter, original.weight))


def _trim_heap() -> None:
    """Give freed memory back: between weights that stay, conversions leave holes of up to half of their size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
