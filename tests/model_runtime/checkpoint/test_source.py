"""What a user writes becomes a folder, or an error that says what would help; the network is never asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from v32.model_runtime.checkpoint import resolve_source
from v32.model_runtime.checkpoint.source import embedded_checkpoint, hub_cache, repository_id
from v32.model_runtime.errors import CheckpointError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with one repository of two snapshots, `main` pointing to the first."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repo = tmp_path / "hub" / "models--deepseek-ai--DeepSeek-V3.2"
    for commit in ("aaa", "bbb"):
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("aaa\n")
    return repo


def refusal(source: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve_source(source)
    return str(caught.value)


def test_a_repository_id_is_its_main_snapshot_or_the_named_one(cache: Path) -> None:
    assert resolve_source("deepseek-ai/DeepSeek-V3.2") == cache / "snapshots" / "aaa"
    assert resolve_source("deepseek-ai/DeepSeek-V3.2@bbb") == cache / "snapshots" / "bbb"
    assert repository_id(cache / "snapshots" / "aaa") == "deepseek-ai/DeepSeek-V3.2"


def test_a_folder_wins_over_a_repository_of_the_same_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("deepseek-ai") / "DeepSeek-V3.2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve_source(str(folder)) == folder


def test_without_refs_the_only_snapshot_is_meant(cache: Path) -> None:
    (cache / "refs" / "main").unlink()
    assert "has 2 snapshots and no refs/main; name one" in refusal("deepseek-ai/DeepSeek-V3.2")
    (cache / "snapshots" / "bbb" / "config.json").unlink()
    (cache / "snapshots" / "bbb").rmdir()
    assert resolve_source("deepseek-ai/DeepSeek-V3.2") == cache / "snapshots" / "aaa"


def test_what_is_not_there_is_said_with_the_remedy(cache: Path, tmp_path: Path) -> None:
    assert "neither a folder nor in the Hugging Face cache" in refusal("deepseek-ai/Other")
    assert "fetch it with `hf download deepseek-ai/Other`" in refusal("deepseek-ai/Other")
    assert "has no snapshot ccc" in refusal("deepseek-ai/DeepSeek-V3.2@ccc")
    (cache / "snapshots" / "aaa" / "config.json").unlink()
    assert "has no config.json; expected a complete snapshot" in refusal("deepseek-ai/DeepSeek-V3.2")
    assert "no folder ./nowhere; give a folder in Hugging Face layout" in refusal("./nowhere")
    assert "is a server, not a checkpoint" in refusal("vllm+http://localhost:8000")
    (tmp_path / "model.safetensors").touch()
    assert "is a file; give the folder that holds it" in refusal(tmp_path / "model.safetensors")
    (tmp_path / "empty").mkdir()
    assert "has no config.json; expected a folder in Hugging Face layout" in refusal(tmp_path / "empty")


def test_the_cache_is_where_hugging_face_tools_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert hub_cache() == Path.home() / ".cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub_cache() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/h")
    assert hub_cache() == Path("/h/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/c")
    assert hub_cache() == Path("/c")


def test_the_embedded_checkpoint_lies_beside_its_recipe() -> None:
    assert embedded_checkpoint().parts[-2:] == ("tiny_v32", "checkpoint")
