"""A folder loads as the model that was written, whatever its precision and sharding; nothing is read twice."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from v32.kernels.fp8_gemm import dequantize
from v32.kernels.native import library
from v32.model_runtime.checkpoint import CheckpointIndex, check_tokenizer, load_checkpoint, write_checkpoint
from v32.model_runtime.checkpoint.fp8 import quantize_blocks
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM
from v32.model_runtime.scoring import full_logits

IDS = torch.randint(0, 150, (30,), generator=torch.Generator().manual_seed(2)).tolist()


def states_equal(a: DeepseekV32ForCausalLM, b: DeepseekV32ForCausalLM) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_float32_round_trip_is_exact(write: Callable[..., Path], model: DeepseekV32ForCausalLM) -> None:
    loaded = load_checkpoint(write("whole", precision="float32", mtp=True), mtp=True)
    assert states_equal(loaded, model)
    assert torch.equal(full_logits(loaded, IDS), full_logits(model, IDS))


def test_shards_and_single_file_are_the_same_model(write: Callable[..., Path]) -> None:
    single = write("single", precision="fp8")
    sharded = write("sharded", precision="fp8", max_shard_bytes=100_000)
    assert len(list(single.glob("*.safetensors"))) == 1
    assert len(list(sharded.glob("*.safetensors"))) > 3
    a, b = load_checkpoint(single), load_checkpoint(sharded)
    assert states_equal(a, b)
    assert CheckpointIndex.from_dir(single).fingerprint == CheckpointIndex.from_dir(sharded).fingerprint


def test_numbered_shards_load_without_their_index(write: Callable[..., Path]) -> None:
    folder = write("sharded", max_shard_bytes=100_000)
    expected = load_checkpoint(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert states_equal(load_checkpoint(folder), expected)


def test_fp8_in_memory_equals_fp8_dequantised(write: Callable[..., Path]) -> None:
    folder = write("fp8", precision="fp8", mtp=True)
    kept = load_checkpoint(folder, dequantize=False, mtp=True)
    floats = load_checkpoint(folder, dequantize=True, mtp=True)
    assert kept.model.layers[0].self_attn.q_a_proj.weight.dtype == torch.float8_e4m3fn
    assert kept.model.layers[1].mlp.experts[3].down_proj.weight.dtype == torch.float8_e4m3fn
    assert all(tensor.dtype == torch.float32 for tensor in floats.state_dict().values())
    assert torch.allclose(full_logits(kept, IDS), full_logits(floats, IDS), rtol=1e-4, atol=1e-5)


def test_fp8_holds_what_quantising_the_weights_gives(write: Callable[..., Path], model: DeepseekV32ForCausalLM) -> None:
    loaded = load_checkpoint(write("fp8", precision="fp8"), dequantize=True)
    weight = model.model.layers[1].mlp.experts[5].up_proj.weight
    assert torch.equal(loaded.model.layers[1].mlp.experts[5].up_proj.weight, dequantize(*quantize_blocks(weight)))
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bfloat16_files_load_in_every_dtype(write: Callable[..., Path], dtype: torch.dtype) -> None:
    folder = write("bf16", precision="bfloat16")
    loaded = load_checkpoint(folder, dtype=dtype)
    assert loaded.model.norm.weight.dtype == dtype
    assert loaded.model.embed_tokens.weight.dtype in (dtype, torch.bfloat16)  # native kernels read it as stored
    assert loaded.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert loaded.model.layers[1].mlp.gate.weight.dtype == torch.float32
    assert loaded.model.layers[0].self_attn.indexer.weights_proj.weight.dtype == torch.float32
    exact = full_logits(load_checkpoint(folder), IDS[:8])
    assert (full_logits(loaded, IDS[:8]) - exact).norm() / exact.norm() < 0.03


def test_fp8_in_bfloat16_computes(write: Callable[..., Path]) -> None:
    """What an accelerator does by default: FP8 weights, bfloat16 activations."""
    folder = write("fp8", precision="fp8")
    exact = full_logits(load_checkpoint(folder), IDS[:8])
    for dequantised in (False, True):
        loaded = load_checkpoint(folder, dtype=torch.bfloat16, dequantize=dequantised)
        assert (full_logits(loaded, IDS[:8]) - exact).norm() / exact.norm() < 0.03


def test_draft_layers_are_recognised_and_share_what_they_copy(
    write: Callable[..., Path], model: DeepseekV32ForCausalLM
) -> None:
    draft = model.mtp_layers[0]
    draft.embed_tokens.weight.copy_(model.model.embed_tokens.weight)
    draft.shared_head.head.weight.copy_(model.lm_head.weight)
    folder = write("drafts", precision="fp8", mtp=True)
    assert not load_checkpoint(folder).mtp_layers
    loaded = load_checkpoint(folder, mtp="auto")
    assert loaded.mtp_layers[0].embed_tokens.weight is loaded.model.embed_tokens.weight
    assert loaded.mtp_layers[0].shared_head.head.weight is loaded.lm_head.weight
    assert not load_checkpoint(write("none"), mtp="auto").mtp_layers


def test_a_draft_head_of_its_own_is_kept(write: Callable[..., Path], model: DeepseekV32ForCausalLM) -> None:
    loaded = load_checkpoint(write("drafts", precision="float32", mtp=True), mtp=True)
    assert torch.equal(loaded.mtp_layers[0].shared_head.head.weight, model.mtp_layers[0].shared_head.head.weight)
    assert not torch.equal(loaded.mtp_layers[0].shared_head.head.weight, loaded.lm_head.weight)


def test_tied_embeddings_are_one_tensor(tmp_path: Path, config: DeepseekV32Config) -> None:
    tied = dataclasses.replace(config, tie_word_embeddings=True)
    model = DeepseekV32ForCausalLM(tied).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_()
    write_checkpoint(tmp_path, tied, model.state_dict())
    assert "lm_head.weight" not in CheckpointIndex.from_dir(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_rotary_buffers_of_other_writers_are_ignored(
    tmp_path: Path, config: DeepseekV32Config, model: DeepseekV32ForCausalLM
) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    write_checkpoint(tmp_path, config, model.state_dict() | extra)
    load_checkpoint(tmp_path)


def test_each_tensor_is_read_once_and_progress_ends_at_all_bytes(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("fp8", precision="fp8", max_shard_bytes=100_000)
    reads: Counter[str] = Counter()

    def counted(method: str) -> Callable[..., torch.Tensor]:
        read = getattr(CheckpointIndex, method)

        def wrapped(index: CheckpointIndex, name: str, *rest: torch.Tensor) -> torch.Tensor:
            reads[name] += 1
            return read(index, name, *rest)

        return wrapped

    for method in ("read", "read_into"):
        monkeypatch.setattr(CheckpointIndex, method, counted(method))
    seen: list[tuple[int, int]] = []
    load_checkpoint(folder, progress=lambda done, total: seen.append((done, total)))
    index = CheckpointIndex.from_dir(folder)
    assert reads == dict.fromkeys(index, 1)
    assert seen[-1] == (index.num_bytes, index.num_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("precision", ["fp8", "bfloat16", "float32"])
def test_each_byte_is_read_once(write: Callable[..., Path], precision: str) -> None:
    """By the system's own count, where native kernels take weights as they are and nothing is mapped."""
    if library() is None:
        pytest.skip("no native kernels on this machine")
    folder = write("model", precision=precision, max_shard_bytes=100_000)

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    sizes = [file.stat().st_size for file in folder.iterdir()]
    before = bytes_read()
    load_checkpoint(folder)
    read = bytes_read() - before
    assert CheckpointIndex.from_dir(folder).num_bytes < read < sum(sizes) + 16_384 * len(sizes)  # buffers of headers


def test_writing_to_a_loaded_model_leaves_the_file_alone(write: Callable[..., Path]) -> None:
    folder = write("whole", precision="float32")
    before = (folder / "model.safetensors").read_bytes()
    load_checkpoint(folder).lm_head.weight.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_an_old_checkpoint_is_replaced_only_when_asked(write: Callable[..., Path]) -> None:
    folder = write("twice", max_shard_bytes=100_000, variant="v3.2")
    with pytest.raises(CheckpointError, match=r"already holds config.json; choose another folder or overwrite=True"):
        write("twice")
    write("twice", precision="float32", overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert load_checkpoint(folder)


def test_the_manifest_names_variant_and_fingerprint(write: Callable[..., Path]) -> None:
    folder = write("noted", variant="speciale")
    manifest = json.loads((folder / "v32.json").read_text())
    assert manifest == {
        "variant": "speciale",
        "fingerprint": CheckpointIndex.from_dir(folder).fingerprint,
        "format": 1,
    }


def test_published_keys_survive_in_config_json(write: Callable[..., Path], config: DeepseekV32Config) -> None:
    assert DeepseekV32Config.from_dir(write("bf16")) == dataclasses.replace(config, scale_fmt=None)
    written = json.loads((write("fp8", precision="fp8") / "config.json").read_text())
    assert written["quantization_config"]["weight_block_size"] == [128, 128]
    assert written["architectures"] == ["DeepseekV32ForCausalLM"]


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(config: DeepseekV32Config) -> None:
    check_tokenizer(config, 150)
    with pytest.raises(CheckpointError, match=r"has 151 tokens, but vocab_size is 150: it belongs to another model"):
        check_tokenizer(config, 151)
