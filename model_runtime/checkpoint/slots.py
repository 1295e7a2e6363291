"""The places of a model and the tensors of a checkpoint that fill them, paired and checked by their headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from v32.model_runtime.checkpoint.fp8 import has_nan_codes, num_blocks
from v32.model_runtime.checkpoint.index import CheckpointIndex, TensorInfo, some_of
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn
_PIECE = 1 << 20
_SCALE = "_scale_inv"
_BUFFERS_OF_OTHERS = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
# The arithmetic with these is done in float32 whatever the model's dtype.
KEPT_FLOAT32 = re.compile(r"\.(indexer\.k_norm\.(weight|bias)|indexer\.weights_proj\.weight|mlp\.gate\..*)$")
ROUTED_EXPERT = re.compile(r"\.mlp\.experts\.\d+\.")
# Read directly by their callers, without a scale.
_NEVER_FP8 = re.compile(r"(^lm_head|\.shared_head\.head|\.indexer\.weights_proj)\.weight$")


class Slot(NamedTuple):
    """A place in the model and the tensors that fill it."""

    module: nn.Module
    attribute: str
    info: TensorInfo
    scale: TensorInfo | None

    @property
    def num_bytes(self) -> int:
        return self.info.num_bytes + (self.scale.num_bytes if self.scale else 0)

    def put(self, tensor: Tensor, *, is_scale: bool = False) -> None:
        attribute = self.attribute + _SCALE if is_scale else self.attribute
        is_buffer = attribute in self.module._buffers
        setattr(self.module, attribute, tensor if is_buffer else nn.Parameter(tensor, requires_grad=False))


def slots_of(model: DeepseekV32ForCausalLM, index: CheckpointIndex) -> Iterator[Slot]:
    """Pair places and tensors, after checking from the headers alone that they fit one another."""
    places = model.state_dict(keep_vars=True)
    _check_names(model.config, places, index)
    modules = dict(model.named_modules())
    for name in (name for name in places if name in index):
        path, _, attribute = name.rpartition(".")
        info, scale = index[name], index.get(name + _SCALE)
        _check_tensor(info, scale, tuple(places[name].shape), isinstance(modules[path], Linear))
        yield Slot(modules[path], attribute, info, scale)


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


def check_fp8(info: TensorInfo, codes: Tensor, scale: Tensor) -> None:
    if has_nan_codes(codes):
        raise CheckpointError(f"{_at(info)} holds NaN codes (0x7F or 0xFF); download {info.file.name} again")
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise CheckpointError(
            f"{info.name}{_SCALE} holds scales that are zero, negative or not finite; download {info.file.name} again"
        )


def check_finite(info: TensorInfo, tensor: Tensor) -> None:
    """One pass over sound tensors: a sum keeps every NaN and infinity, only an overflow needs a second look."""
    # In pieces: sums of bfloat16 are taken of a copy in float32.
    pieces = tensor.flatten().split(_PIECE)
    if not all(bool(torch.isfinite(p.sum(dtype=torch.float32))) or bool(torch.isfinite(p).all()) for p in pieces):
        raise CheckpointError(f"{_at(info)} holds NaN or infinite values; download {info.file.name} again")


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
    if all(is_mtp(config, name) for name in missing):
        return " (load with mtp=False to do without the draft layers)"
    return ""


def _may_be_missing(config: DeepseekV32Config, name: str) -> bool:
    """Copies of the main embedding and head, which are shared after loading."""
    if name == "lm_head.weight":
        return config.tie_word_embeddings
    return is_mtp(config, name) and name.endswith((".embed_tokens.weight", ".shared_head.head.weight"))


def _may_be_ignored(config: DeepseekV32Config, name: str, index: CheckpointIndex) -> bool:
    weight = index.get(name.removesuffix(_SCALE)) if name.endswith(_SCALE) else None
    is_scale = weight is not None and weight.dtype == FP8
    return is_scale or is_mtp(config, name) or bool(_BUFFERS_OF_OTHERS.search(name))


def is_mtp(config: DeepseekV32Config, name: str) -> bool:
    match = re.match(r"model\.layers\.(\d+)\.", name)
    extra = int(match[1]) - config.num_hidden_layers if match else -1
    return 0 <= extra < config.num_nextn_predict_layers


def _at(info: TensorInfo) -> str:
    return f"{info.name} in {info.file.name}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
