"""From a model's tensors to a folder in Hugging Face layout: config.json, safetensors shards, index, manifest.

What is written here is read by `loader.py`, and by any other program that reads the published checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from v32.model_runtime.checkpoint.fp8 import quantize_blocks
from v32.model_runtime.checkpoint.index import INDEX_FILE, SINGLE_FILE, CheckpointIndex
from v32.model_runtime.checkpoint.manifest import MANIFEST_FILE, Manifest, Variant
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.errors import CheckpointError

Precision = Literal["float32", "bfloat16", "fp8"]
_FP8_WEIGHTS = re.compile(
    r"\.(self_attn\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj|indexer\.wq_b|indexer\.wk)"
    r"|mlp\.(experts\.\d+\.|shared_experts\.)?(gate_proj|up_proj|down_proj))\.weight$"
)
_FLOAT32 = re.compile(r"\.(e_score_correction_bias|weight_scale_inv)$")


def write_checkpoint(
    folder: str | Path,
    config: DeepseekV32Config,
    state: Mapping[str, Tensor],
    *,
    precision: Precision = "bfloat16",
    max_shard_bytes: int = 5 * 10**9,
    variant: Variant | None = None,
    overwrite: bool = False,
) -> str:
    """Write `state` (names as published, as `model.state_dict()` has them) and return its fingerprint.

    "fp8" quantises what the published checkpoints hold as FP8 in blocks of 128 x 128 and leaves the rest bfloat16.
    Tensors that are FP8 already, with their scales, pass as they are. Without `variant` no manifest is written.
    """
    folder = Path(folder)
    old = _present(folder)
    if old and not overwrite:
        raise CheckpointError(f"{folder} already holds {old[0].name}; choose another folder or overwrite=True")
    tensors = _in_precision(_without_tied_head(config, state), precision)
    config = dataclasses.replace(config, is_fp8=any(name.endswith("weight_scale_inv") for name in tensors))
    folder.mkdir(parents=True, exist_ok=True)
    # A crash while writing leaves what was there before.
    with TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        new = Path(partial)
        (new / "config.json").write_text(_config_json(config, precision), encoding="utf-8")
        _write_shards(new, tensors, max_shard_bytes)
        fingerprint = CheckpointIndex.from_dir(new).fingerprint
        if variant:
            Manifest(variant, fingerprint).write(new)
        _replace(old, new, folder)
    return fingerprint


def _present(folder: Path) -> list[Path]:
    """The files of a checkpoint that lies in the folder already."""
    files = [folder / "config.json", folder / INDEX_FILE, folder / MANIFEST_FILE, *folder.glob("*.safetensors")]
    return [file for file in files if file.exists()]


def _replace(old: list[Path], new: Path, folder: Path) -> None:
    """Old shards go as a whole, so that none is left among the new ones."""
    for file in old:
        file.unlink()
    for file in new.iterdir():
        file.rename(folder / file.name)


def _without_tied_head(config: DeepseekV32Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor for name, tensor in state.items() if not (config.tie_word_embeddings and name == "lm_head.weight")
    }


def _in_precision(state: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    if precision not in ("float32", "bfloat16", "fp8"):
        raise ValueError(f"precision is {precision!r}; choose float32, bfloat16 or fp8")
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.float8_e4m3fn:
            tensors[name] = tensor.contiguous()
        elif precision == "fp8" and _FP8_WEIGHTS.search(name):
            tensors[name], tensors[name + "_scale_inv"] = quantize_blocks(tensor)
        else:
            tensors[name] = tensor.to(torch.float32 if _FLOAT32.search(name) else dtype).contiguous()
    return tensors


def _config_json(config: DeepseekV32Config, precision: Precision) -> str:
    dtype = "float32" if precision == "float32" else "bfloat16"
    return json.dumps(config.to_dict() | {"torch_dtype": dtype}, indent=2) + "\n"


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int) -> None:
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        _save(shards[0], folder / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(tensors: Mapping[str, Tensor], max_shard_bytes: int) -> list[dict[str, Tensor]]:
    """Shards in the order of the tensors, each as full as allowed; a larger tensor has a shard of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file(dict(_unshared(tensors)), file, metadata={"format": "pt"})


def _unshared(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Copies of what shares memory (the heads of draft layers): a file holds each name's bytes."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        yield name, tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
