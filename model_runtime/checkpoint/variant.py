"""Which of the V3.2 models a checkpoint is. Their config and tensors are alike; only names and texts tell them apart.

A wrong answer costs more on one side: Speciale was never trained to call tools, and calls it makes up are worse than
a refusal. So every sign of Speciale counts, and a plain `V3.2` in a folder's name counts last.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from v32.model_runtime.checkpoint.manifest import MANIFEST_FILE, VARIANTS, Manifest, Variant
from v32.model_runtime.checkpoint.source import repository_id
from v32.model_runtime.errors import CheckpointError

VariantChoice = Literal["auto", "v3.2", "speciale", "exp", "unknown"]
_SPECIALE_README = re.compile(r"^# .*speciale|does\s+not\s+support\s+(the\s+)?tool[-\s]?calling", re.I | re.M)
_README_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class VariantInfo:
    """The variant, the sign it was recognised by, and whether it was trained to call tools."""

    name: Variant
    how: str

    @property
    def supports_tools(self) -> bool:
        return self.name != "speciale"

    @property
    def warning(self) -> str | None:
        """What a user should know before giving tools to it."""
        if self.name == "unknown":
            return (
                f"the variant is unknown ({self.how}); tools are allowed. Say variant='v3.2' or 'speciale' to be sure"
            )
        if self.name == "exp":
            return "V3.2-Exp was trained with another tool format than V3.2's, which is used here; calls may be poor"
        return None


class VariantWarning(UserWarning):
    """Tools are allowed, but the variant may not have been trained for them."""


def detect_variant(source: str | Path, explicit: VariantChoice = "auto") -> VariantInfo:
    """Recognise the variant of a folder, or of a model by its name alone (a server's, a repository's).

    In this order: the explicit argument; the manifest; the repository name, and signs of Speciale or Exp in the
    folder's name or config; title or sentence in the README; `V3.2` in a name; a chat template (only Exp ships one);
    else unknown, with a `VariantWarning`.
    """
    if explicit not in get_args(VariantChoice):
        raise ValueError(f"variant is {explicit!r}; choose from {', '.join(get_args(VariantChoice))}")
    if explicit != "auto":
        return VariantInfo(explicit, "given as variant=")
    info = next(_signs(source), VariantInfo("unknown", "nothing in its name or files says which"))
    if info.warning:
        warnings.warn(f"{source}: {info.warning}", VariantWarning, stacklevel=2)
    return info


def _signs(source: str | Path) -> Iterator[VariantInfo]:
    """What speaks for a variant, strongest first."""
    folder = Path(source)
    if not folder.is_dir():
        yield from _by_name(str(source), "the name")
        return
    if manifest := Manifest.read(folder):
        yield VariantInfo(manifest.variant, f"the manifest {MANIFEST_FILE}")
    if repo := repository_id(folder):
        yield from _by_name(repo, "the repository name")
    named = [*_by_name(folder.absolute().name, "the folder name"), *_by_name(_name_in_config(folder), "_name_or_path")]
    yield from (info for info in named if info.name != "v3.2")
    if _SPECIALE_README.search(_readme(folder)):
        yield VariantInfo("speciale", "README.md")
    yield from named
    if _has_chat_template(folder):
        yield VariantInfo("exp", "its chat template, which only V3.2-Exp ships")


def _by_name(name: str, where: str) -> Iterator[VariantInfo]:
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
    if "speciale" in last:
        yield VariantInfo("speciale", f"{where} {name!r}")
    elif re.search(r"v3[._-]?2[._-]exp(?![a-z])", last):
        yield VariantInfo("exp", f"{where} {name!r}")
    elif re.search(r"v3[._-]?2(?!\d)", last):
        yield VariantInfo("v3.2", f"{where} {name!r}")


def _name_in_config(folder: Path) -> str:
    return str(_read_json(folder / "config.json").get("_name_or_path") or "")


def _readme(folder: Path) -> str:
    file = folder / "README.md"
    return file.read_text(encoding="utf-8", errors="replace")[:_README_CHARACTERS] if file.is_file() else ""


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "assets" / "chat_template.jinja").is_file():
        return True
    return bool(_read_json(folder / "tokenizer_config.json").get("chat_template"))


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); download it again") from None
    return content if isinstance(content, dict) else {}


__all__ = ["VARIANTS", "Variant", "VariantChoice", "VariantInfo", "VariantWarning", "detect_variant"]
