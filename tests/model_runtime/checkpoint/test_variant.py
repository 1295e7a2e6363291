"""Speciale is recognised by every sign there is; a user's word stands above all signs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from v32.model_runtime.checkpoint import VariantWarning, detect_variant
from v32.model_runtime.checkpoint.manifest import Manifest
from v32.model_runtime.errors import CheckpointError

SENTENCE = "Please note: the DeepSeek-V3.2-Speciale variant does not support the tool-calling functionality."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose name and files say nothing."""
    path = tmp_path / "weights"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("deepseek-ai/DeepSeek-V3.2", "v3.2"),
        ("deepseek-ai/DeepSeek-V3.2-Speciale", "speciale"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "exp"),
        ("someone/deepseek-v3_2-speciale-awq", "speciale"),
        ("someone/DeepSeek-V3.2-AWQ", "v3.2"),
        ("/srv/models/DeepSeek-V3.2-NVFP4/", "v3.2"),
        ("deepseek-v32", "v3.2"),
        ("deepseek-v3.2-experiment", "v3.2"),
    ],
)
def test_names_of_served_models(name: str, variant: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VariantWarning)
        info = detect_variant(name)
    assert (info.name, name in info.how) == (variant, True)
    assert info.supports_tools == (variant != "speciale")


def test_unknown_allows_tools_with_a_warning(folder: Path) -> None:
    with pytest.warns(VariantWarning, match=r"the variant is unknown .*variant='v3.2' or 'speciale'"):
        info = detect_variant(folder)
    assert (info.name, info.supports_tools) == ("unknown", True)
    with pytest.warns(VariantWarning):
        assert detect_variant("deepseek-v3.21").name == "unknown"


def test_the_repository_of_a_cached_snapshot_counts(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--deepseek-ai--DeepSeek-V3.2-Speciale" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    info = detect_variant(snapshot)
    assert (info.name, info.how) == ("speciale", "the repository name 'deepseek-ai/DeepSeek-V3.2-Speciale'")


def test_signs_in_order_of_strength(folder: Path) -> None:
    """Each stronger sign is added to the weaker ones and overrules them."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    with pytest.warns(VariantWarning, match=r"V3.2-Exp was trained with another tool format"):
        assert detect_variant(folder).name == "exp"
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "deepseek-ai/DeepSeek-V3.2"}))
    assert detect_variant(folder).name == "v3.2"
    (folder / "README.md").write_text(f"# Weights\n\n{SENTENCE}\n")
    assert (detect_variant(folder).name, detect_variant(folder).how) == ("speciale", "README.md")
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "deepseek-ai/DeepSeek-V3.2-Exp"}))
    with pytest.warns(VariantWarning):
        assert detect_variant(folder).name == "exp"
    renamed = folder.rename(folder.with_name("my-Speciale"))
    assert detect_variant(renamed).how == "the folder name 'my-Speciale'"
    Manifest("v3.2", "").write(renamed)
    assert (detect_variant(renamed).name, detect_variant(renamed).how) == ("v3.2", "the manifest v32.json")
    assert detect_variant(renamed, "speciale").how == "given as variant="


@pytest.mark.parametrize("readme", [SENTENCE, "# DeepSeek-V3.2-Speciale\n", "does not support tool\ncalling"])
def test_readme_of_speciale(folder: Path, readme: str) -> None:
    (folder / "README.md").write_text(readme)
    assert not detect_variant(folder).supports_tools


def test_a_readme_that_mentions_speciale_is_not_speciale(folder: Path) -> None:
    (folder / "README.md").write_text("# DeepSeek-V3.2\n\nWe also release DeepSeek-V3.2-Speciale.\n")
    with pytest.warns(VariantWarning):
        assert detect_variant(folder).name == "unknown"


def test_wrong_words_and_files_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"variant is 'special'; choose from auto, v3.2, speciale, exp, unknown"):
        detect_variant(folder, "special")  # type: ignore[arg-type]
    (folder / "v32.json").write_text('{"variant": "v9"}')
    with pytest.raises(CheckpointError, match=r"names the variant 'v9'; known are v3.2, speciale, exp, unknown"):
        detect_variant(folder)
    (folder / "v32.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"is not a manifest of v32; repair or delete it"):
        detect_variant(folder)
