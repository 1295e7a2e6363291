"""Whatever is wrong with a folder is found before or while loading, by name, with the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from v32.model_runtime.checkpoint import CheckpointIndex, load_checkpoint
from v32.model_runtime.errors import CheckpointError

FILE = "model.safetensors"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture
def fp8(write: Callable[..., Path]) -> Path:
    return write("fp8", precision="fp8")


@pytest.fixture
def sharded(write: Callable[..., Path]) -> Path:
    return write("sharded", max_shard_bytes=100_000)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite the single file of a folder after `change` of its tensors."""
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, **options)
    return str(caught.value)


def with_code(tensor: torch.Tensor, code: int) -> torch.Tensor:
    tensor.view(torch.uint8)[1, 2] = code
    return tensor


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor.view(-1)[-1] = value
    return tensor


@pytest.mark.parametrize("keep", [0, 5, 8, 100])
def test_a_file_cut_inside_its_header(fp8: Path, keep: int) -> None:
    file = fp8 / FILE
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{FILE} is cut off inside its header ({keep} bytes); download it again" in refusal(fp8)


def test_a_file_cut_inside_its_data_names_what_is_lost(fp8: Path) -> None:
    file = fp8 / FILE
    last = max(CheckpointIndex.from_dir(fp8).values(), key=lambda info: info.stop)
    file.write_bytes(file.read_bytes()[:-1])
    message = refusal(fp8)
    assert f"{FILE} is cut off: {last.stop - 1} of {last.stop} bytes, without all of {last.name}" in message


def test_a_file_with_bytes_too_many(fp8: Path) -> None:
    with (fp8 / FILE).open("ab") as stream:
        stream.write(b"rest")
    assert "has 4 bytes too many after its last tensor" in refusal(fp8)


def test_a_file_that_is_no_safetensors(fp8: Path) -> None:
    (fp8 / FILE).write_bytes((20).to_bytes(8, "little") + b"<html>not weights</html>" * 9)
    assert "has no readable safetensors header; it is damaged or not safetensors" in refusal(fp8)


def test_a_git_lfs_pointer(fp8: Path) -> None:
    (fp8 / FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    assert "is a Git LFS pointer, not the weights; run `git lfs pull`" in refusal(fp8)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "x with shape [2] and dtype F32 cannot fill 4 bytes"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 4]}, "x has dtype F4; known are F64, F32"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}, "cannot fill -4 bytes"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "x overlaps or leaves a gap"),
        ({"dtype": "F32", "shape": [1]}, "the header entry of x is damaged"),
        ([], "the header entry of x is damaged"),
    ],
)
def test_a_damaged_header_entry(tmp_path: Path, entry: Any, message: str) -> None:
    header = json.dumps({"x": entry}).encode()
    (tmp_path / FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError) as caught:
        CheckpointIndex.from_dir(tmp_path)
    assert message in str(caught.value)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))
    (sharded / shards[1]).unlink()
    assert f"lacks {shards[1]}; download the missing files into it" in refusal(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    assert f"lacks {shards[1]}; download" in refusal(sharded)


def test_an_index_of_another_download(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    file.write_text(json.dumps(index))
    assert "says that model.norm.weight is in model-00001-of-" in refusal(sharded)
    file.write_text("[]")
    assert "is not a safetensors index (an object with 'weight_map')" in refusal(sharded)
    file.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert "points outside its folder: ../../etc/passwd" in refusal(sharded)


def test_the_same_tensor_in_two_files(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    shards = sorted(sharded.glob("*.safetensors"))
    for number, shard in enumerate(shards):
        shard.rename(sharded / f"part{number}.safetensors")
    save_file({"model.norm.weight": torch.ones(144)}, sharded / "stale.safetensors")
    assert "model.norm.weight is in part" in refusal(sharded)
    assert "and in stale.safetensors: remove the file that is left over" in refusal(sharded)


def test_a_missing_tensor_is_named(fp8: Path) -> None:
    edit(fp8, lambda tensors: tensors.pop("model.layers.1.mlp.gate.e_score_correction_bias"))
    message = refusal(fp8)
    assert "lacks 1 of the tensors that its config.json asks for: model.layers.1.mlp.gate.e_score_corr" in message
    assert "the download is incomplete or config.json is of another model" in message


def test_a_missing_scale_is_named(fp8: Path) -> None:
    edit(fp8, lambda tensors: tensors.pop(EXPERT + "_scale_inv"))
    assert f"asks for: {EXPERT}_scale_inv" in refusal(fp8)


def test_a_missing_head_suggests_tying(fp8: Path) -> None:
    edit(fp8, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight; the download is incomplete" in refusal(fp8)
    assert "(set tie_word_embeddings if the model has no head of its own)" in refusal(fp8)


def test_missing_draft_layers_suggest_to_do_without(fp8: Path) -> None:
    message = refusal(fp8, mtp=True)
    assert "model.layers.2." in message
    assert "(load with mtp=False to do without the draft layers)" in message


def test_tensors_nobody_asked_for_are_named(fp8: Path) -> None:
    edit(fp8, lambda tensors: tensors.update({"model.layers.7.self_attn.q_norm.weight": torch.ones(3)}))
    message = refusal(fp8)
    assert "has 1 tensors that its config.json does not ask for: model.layers.7.self_attn.q_norm.weight" in message


def test_a_scale_without_fp8_is_unexpected(fp8: Path) -> None:
    edit(fp8, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].bfloat16()}))
    assert f"does not ask for: {EXPERT}_scale_inv" in refusal(fp8)


def test_swapped_dimensions_are_named(fp8: Path) -> None:
    edit(fp8, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].T.contiguous()}))
    message = refusal(fp8)
    assert f"{EXPERT} in {FILE} has shape [144, 48], but config.json asks for [48, 144]" in message
    assert "weights and config.json belong to different models" in message


def test_scales_of_another_block_size(fp8: Path) -> None:
    edit(fp8, lambda tensors: tensors.update({EXPERT + "_scale_inv": torch.ones(1, 3)}))
    message = refusal(fp8)
    assert (
        f"{EXPERT}_scale_inv in {FILE} has shape [1, 3]; blocks of 128 x 128 of a weight of shape [48, 144]" in message
    )


@pytest.mark.parametrize(
    ("name", "dtype", "allowed"),
    [
        (EXPERT, torch.int8, "float16 or float8_e4m3fn with weight_scale_inv"),
        (EXPERT, torch.float8_e5m2, "float16 or float8_e4m3fn with weight_scale_inv"),
        ("model.norm.weight", torch.int32, "it must be float32, bfloat16, float16"),
        ("lm_head.weight", torch.float8_e4m3fn, "it must be float32, bfloat16, float16"),
    ],
)
def test_a_wrong_dtype_is_named(fp8: Path, name: str, dtype: torch.dtype, allowed: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].float().to(dtype)
        tensors.pop(name + "_scale_inv", None)
        if dtype == torch.float8_e4m3fn:
            tensors[name + "_scale_inv"] = torch.ones(2, 2)

    edit(fp8, change)
    message = refusal(fp8)
    assert f"{name} in {FILE} has dtype {str(dtype).removeprefix('torch.')}; it must be" in message
    assert allowed in message


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan_codes_are_found(fp8: Path, code: int) -> None:
    edit(fp8, lambda tensors: with_code(tensors[EXPERT], code))
    assert f"{EXPERT} in {FILE} holds NaN codes (0x7F or 0xFF); download {FILE} again" in refusal(fp8)
    load_checkpoint(fp8, verify=False)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_scales_are_found(fp8: Path, value: float) -> None:
    edit(fp8, lambda tensors: with_value(tensors[EXPERT + "_scale_inv"], value))
    assert f"{EXPERT}_scale_inv holds scales that are zero, negative or not finite" in refusal(fp8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_found(fp8: Path, value: float) -> None:
    edit(fp8, lambda tensors: with_value(tensors["model.embed_tokens.weight"], value))
    assert f"model.embed_tokens.weight in {FILE} holds NaN or infinite values" in refusal(fp8)


def test_huge_but_finite_values_pass(fp8: Path) -> None:
    edit(fp8, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    load_checkpoint(fp8)


def test_weights_that_the_manifest_was_not_written_for(write: Callable[..., Path]) -> None:
    folder = write("noted", variant="v3.2")
    load_checkpoint(folder)
    edit(folder, lambda tensors: with_value(tensors["lm_head.weight"], 0.125))
    assert "are not those that v32.json was written for: damaged, or replaced" in refusal(folder)


def test_a_tied_model_with_a_head_of_its_own(fp8: Path) -> None:
    config = json.loads((fp8 / "config.json").read_text())
    (fp8 / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert "differs from model.embed_tokens.weight, but config.json sets tie_word_embeddings" in refusal(fp8)


def test_folders_without_weights(tmp_path: Path, fp8: Path) -> None:
    assert "config.json does not exist; give a folder in Hugging Face layout" in refusal(tmp_path / "nowhere")
    (fp8 / FILE).unlink()
    assert "holds no safetensors file; it needs model.safetensors, or shards with" in refusal(fp8)
    (fp8 / "pytorch_model.bin").touch()
    assert "convert it to safetensors" in refusal(fp8)


def test_config_json_of_another_model(fp8: Path) -> None:
    config = json.loads((fp8 / "config.json").read_text())
    (fp8 / "config.json").write_text(json.dumps(config | {"vocab_size": 151}))
    assert "model.embed_tokens.weight in model.safetensors has shape [150, 144]" in refusal(fp8)
    (fp8 / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "num_nextn_predict_layers": 0}))
    assert "lacks 43 of the tensors" in refusal(fp8)
    (fp8 / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal(fp8)


def test_an_unusual_dtype_is_refused_before_reading(fp8: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype is torch.int8; choose float32, bfloat16 or float16"):
        load_checkpoint(fp8, dtype=torch.int8)
