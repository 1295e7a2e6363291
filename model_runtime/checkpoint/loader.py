"""From a folder in Hugging Face layout to a model: names, shapes and values are checked, nothing is converted first.

    1  config.json     -> a model without memory (meta device)
    2  headers         -> every tensor has its place, every place its tensor, dtypes and shapes fit
    3  tensor by tensor: mapped, checked, brought to its dtype and device, put in its place

Tensors that need no change stay mapped from their file, so a second start costs no reading.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from v32.kernels.fp8_gemm import dequantize as dequantize_blocks
from v32.kernels.native import library
from v32.model_runtime.checkpoint.arena import Arena
from v32.model_runtime.checkpoint.fp8 import has_nan_codes, num_blocks
from v32.model_runtime.checkpoint.index import CheckpointIndex, TensorInfo, some_of
from v32.model_runtime.checkpoint.manifest import MANIFEST_FILE, Manifest
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM, Numerics

Progress = Callable[[int, int], None]
"""Called with the bytes loaded so far and in all."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn
_SCALE = "_scale_inv"
_TRIM_BYTES = 16 << 20
_BUFFERS_OF_OTHERS = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
# The arithmetic with these is done in float32 whatever the model's dtype.
KEPT_FLOAT32 = re.compile(r"\.(indexer\.k_norm\.(weight|bias)|indexer\.weights_proj\.weight|mlp\.gate\..*)$")
# Read directly by their callers, without a scale.
_NEVER_FP8 = re.compile(r"(^lm_head|\.shared_head\.head|\.indexer\.weights_proj)\.weight$")


def load_checkpoint(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    dequantize: bool | Literal["auto"] = "auto",
    mtp: bool | Literal["auto"] = False,
    numerics: Numerics = "float",
    verify: bool = True,
    progress: Progress | None = None,
) -> DeepseekV32ForCausalLM:
    """Load a checkpoint; raises `CheckpointError` naming the file or tensor and the remedy.

    `dtype` of activations and of weights that are not FP8: float32 on a CPU, else bfloat16, unless given. FP8 weights
    stay FP8, or become `dtype` with `dequantize`; "auto" does that on a CPU without native kernels when it takes at
    most half of the memory. With native kernels bfloat16 matrices stay as they are, too: sums are float32 anyway.
    `mtp` loads the draft layers behind the last one ("auto": if there are any). `numerics`: see `set_numerics`.
    `verify` looks for NaN and for scales that are not positive; it reads every byte.
    """
    folder, device = Path(folder), torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    if dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype}; choose float32, bfloat16 or float16")
    if numerics == "deepseek" and dequantize is True:
        raise ValueError("numerics='deepseek' multiplies FP8 by FP8; leave the weights FP8 (dequantize=False)")
    config = DeepseekV32Config.from_dir(folder)
    index = CheckpointIndex.from_dir(folder)
    _check_manifest(folder, index)
    model = _model_without_memory(config, with_mtp=_has_mtp(config, index) if mtp == "auto" else mtp)
    slots = list(_slots(model, index))
    if dequantize == "auto":
        num_weights = sum(slot.info.num_bytes // slot.info.dtype.itemsize for slot in slots)
        dequantize = numerics == "float" and dequantizes_by_default(num_weights, device.type, dtype)
    done, total = 0, sum(slot.num_bytes for slot in slots)
    arena = Arena(total) if not dequantize and _is_native(device.type, dtype) else None
    filler = _Filler(index, device, dtype, dequantize, verify, arena)
    for slot in slots:
        filler.fill(slot)
        if done // _TRIM_BYTES != (done + slot.num_bytes) // _TRIM_BYTES:
            _trim_heap()
        done += slot.num_bytes
        if progress:
            progress(done, total)
    _share(model)
    model.set_numerics(numerics)
    return model.requires_grad_(False).eval()


def dequantizes_by_default(num_weights: int, device_type: str, dtype: torch.dtype) -> bool:
    """What `dequantize="auto"` means: on a CPU whose native kernels do not read FP8, if all weights in `dtype` take at
    most half of the memory."""
    if _is_native(device_type, dtype):
        return False
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return device_type == "cpu" and num_weights * dtype.itemsize <= memory // 2


def _is_native(device_type: str, dtype: torch.dtype) -> bool:
    return device_type == "cpu" and dtype == torch.float32 and library() is not None


def check_tokenizer(config: DeepseekV32Config, num_tokens: int, name: str = "the tokenizer") -> None:
    """Raise `CheckpointError` if a tokenizer can produce ids that the model has no embedding for."""
    if num_tokens > config.vocab_size:
        raise CheckpointError(
            f"{name} has {num_tokens} tokens, but vocab_size is {config.vocab_size}: it belongs to another model; "
            "use the tokenizer.json that came with the weights"
        )


class _Slot(NamedTuple):
    """A place in the model and the tensors that fill it."""

    module: nn.Module
    attribute: str
    info: TensorInfo
    scale: TensorInfo | None

    @property
    def num_bytes(self) -> int:
        return self.info.num_bytes + (self.scale.num_bytes if self.scale else 0)


@dataclass(frozen=True, slots=True)
class _Filler:
    """How tensors are brought into the model."""

    index: CheckpointIndex
    device: torch.device
    dtype: torch.dtype
    dequantize: bool
    verify: bool
    arena: Arena | None  # of weights that native kernels read as they are

    def fill(self, slot: _Slot) -> None:
        self._fill(slot)
        placed: Tensor = getattr(slot.module, slot.attribute)
        if self.arena or placed.dtype != slot.info.dtype or placed.device.type != "cpu":
            self.index.release(slot.info.name)  # else the files stay in memory beside what was made of them

    def _fill(self, slot: _Slot) -> None:
        tensor = self.index.read(slot.info.name)
        if slot.scale is None:
            self._put(slot.module, slot.attribute, self._float(slot, tensor))
            return
        scale = self.index.read(slot.scale.name).to(self.device, torch.float32)
        codes = self.arena.keep(tensor) if self.arena else tensor.to(self.device)
        if self.verify:
            _check_fp8(slot.info, codes, scale)
        if self.dequantize:
            self._put(slot.module, slot.attribute, dequantize_blocks(codes, scale, self.dtype))
        else:
            self._put(slot.module, slot.attribute, codes)
            self._put(slot.module, slot.attribute + _SCALE, scale)

    def _float(self, slot: _Slot, tensor: Tensor) -> Tensor:
        info, is_matrix = slot.info, isinstance(slot.module, Linear)
        if self.verify and not _is_finite(tensor):
            raise CheckpointError(f"{_at(info)} holds NaN or infinite values; download {info.file.name} again")
        if KEPT_FLOAT32.search(info.name):
            return tensor.to(self.device, torch.float32)
        if self.arena and is_matrix and tensor.dtype in (torch.float32, torch.bfloat16):
            return self.arena.keep(tensor)
        return tensor.to(self.device, self.dtype)

    @staticmethod
    def _put(module: nn.Module, attribute: str, tensor: Tensor) -> None:
        is_buffer = attribute in dict(module.named_buffers(recurse=False))
        setattr(module, attribute, tensor if is_buffer else nn.Parameter(tensor, requires_grad=False))


def _model_without_memory(config: DeepseekV32Config, *, with_mtp: bool) -> DeepseekV32ForCausalLM:
    with torch.device("meta"):
        return DeepseekV32ForCausalLM(config, with_mtp=with_mtp)


def _slots(model: DeepseekV32ForCausalLM, index: CheckpointIndex) -> Iterator[_Slot]:
    """Pair places and tensors, after checking from the headers alone that they fit one another."""
    places = model.state_dict(keep_vars=True)
    _check_names(model.config, places, index)
    modules = dict(model.named_modules())
    for name in (name for name in places if name in index):
        path, _, attribute = name.rpartition(".")
        info, scale = index[name], index.get(name + _SCALE)
        _check_tensor(info, scale, tuple(places[name].shape), isinstance(modules[path], Linear))
        yield _Slot(modules[path], attribute, info, scale)


def _check_names(config: DeepseekV32Config, places: dict[str, Tensor], index: CheckpointIndex) -> None:
    missing = [name for name in places if name not in index and not _may_be_missing(config, name)]
    missing += [name + _SCALE for name in index if index[name].dtype == FP8 and name + _SCALE not in index]
    if missing:
        raise CheckpointError(
            f"{index.folder} lacks {len(missing)} of the tensors that its config.json asks for: {some_of(missing)}; "
            f"the download is incomplete or config.json is of another model{_hint(config, missing)}"
        )
    unexpected = [name for name in index if name not in places and not _may_be_ignored(config, name, index)]
    if unexpected:
        raise CheckpointError(
            f"{index.folder} has {len(unexpected)} tensors that its config.json does not ask for: {some_of(unexpected)}"
            "; config.json is of another model, or files of another checkpoint lie in the folder"
        )


def _hint(config: DeepseekV32Config, missing: list[str]) -> str:
    if missing == ["lm_head.weight"]:
        return " (set tie_word_embeddings if the model has no head of its own)"
    if all(_is_mtp(config, name) for name in missing):
        return " (load with mtp=False to do without the draft layers)"
    return ""


def _may_be_missing(config: DeepseekV32Config, name: str) -> bool:
    """Copies of the main embedding and head, which are shared after loading."""
    if name == "lm_head.weight":
        return config.tie_word_embeddings
    return _is_mtp(config, name) and name.endswith((".embed_tokens.weight", ".shared_head.head.weight"))


def _may_be_ignored(config: DeepseekV32Config, name: str, index: CheckpointIndex) -> bool:
    weight = index.get(name.removesuffix(_SCALE)) if name.endswith(_SCALE) else None
    is_scale = weight is not None and weight.dtype == FP8
    return is_scale or _is_mtp(config, name) or bool(_BUFFERS_OF_OTHERS.search(name))


def _is_mtp(config: DeepseekV32Config, name: str) -> bool:
    match = re.match(r"model\.layers\.(\d+)\.", name)
    extra = int(match[1]) - config.num_hidden_layers if match else -1
    return 0 <= extra < config.num_nextn_predict_layers


def _has_mtp(config: DeepseekV32Config, index: CheckpointIndex) -> bool:
    return any(_is_mtp(config, name) for name in index)


def _check_tensor(info: TensorInfo, scale: TensorInfo | None, shape: tuple[int, ...], is_linear: bool) -> None:
    if info.shape != shape:
        raise CheckpointError(
            f"{_at(info)} has shape {list(info.shape)}, but config.json asks for {list(shape)}: weights and "
            "config.json belong to different models"
        )
    may_be_fp8 = is_linear and not _NEVER_FP8.search(info.name)
    if info.dtype not in FLOATS and not (info.dtype == FP8 and may_be_fp8):
        allowed = "float32, bfloat16, float16" + (" or float8_e4m3fn with weight_scale_inv" if may_be_fp8 else "")
        raise CheckpointError(f"{_at(info)} has dtype {_short(info.dtype)}; it must be {allowed}")
    if scale is None:
        return
    blocks = tuple(num_blocks(size) for size in shape)
    if scale.shape != blocks:
        raise CheckpointError(
            f"{_at(scale)} has shape {list(scale.shape)}; blocks of 128 x 128 of a weight of shape {list(shape)} need "
            f"{list(blocks)}"
        )
    if scale.dtype not in (*FLOATS, torch.float8_e8m0fnu):
        raise CheckpointError(f"{_at(scale)} has dtype {_short(scale.dtype)}; scales are float32")


def _check_fp8(info: TensorInfo, codes: Tensor, scale: Tensor) -> None:
    if has_nan_codes(codes):
        raise CheckpointError(f"{_at(info)} holds NaN codes (0x7F or 0xFF); download {info.file.name} again")
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise CheckpointError(
            f"{info.name}{_SCALE} holds scales that are zero, negative or not finite; download {info.file.name} again"
        )


def _is_finite(tensor: Tensor) -> bool:
    """One pass over sound tensors: a sum keeps every NaN and infinity, only an overflow needs a second look."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _check_manifest(folder: Path, index: CheckpointIndex) -> None:
    manifest = Manifest.read(folder)
    if manifest and manifest.fingerprint and manifest.fingerprint != index.fingerprint:
        raise CheckpointError(
            f"the weights in {folder} are not those that {MANIFEST_FILE} was written for: damaged, or replaced; "
            f"get them again, or delete {MANIFEST_FILE} if they were replaced on purpose"
        )


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


def _at(info: TensorInfo) -> str:
    return f"{info.name} in {info.file.name}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
