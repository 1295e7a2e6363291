"""`v32.json`, the note that v32 leaves beside the weights it writes: which variant, which fingerprint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from v32.model_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from v32.model_runtime.checkpoint.index import CheckpointIndex

MANIFEST_FILE = "v32.json"
Variant = Literal["v3.2", "speciale", "exp", "unknown"]
VARIANTS: tuple[Variant, ...] = ("v3.2", "speciale", "exp", "unknown")


@dataclass(frozen=True, slots=True)
class Manifest:
    variant: Variant
    fingerprint: str
    format: int = 1

    def write(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None where it has none."""
        file = folder / MANIFEST_FILE
        if not file.is_file():
            return None
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            manifest = cls(fields["variant"], str(fields.get("fingerprint", "")), fields.get("format", 1))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{file} is not a manifest of v32; repair or delete it") from None
        if manifest.variant not in VARIANTS:
            raise CheckpointError(f"{file} names the variant {manifest.variant!r}; known are {', '.join(VARIANTS)}")
        return manifest

    @classmethod
    def check(cls, index: CheckpointIndex) -> None:
        """Raise `CheckpointError` if the folder's manifest was written for weights of another fingerprint."""
        manifest = cls.read(index.folder)
        if manifest and manifest.fingerprint and manifest.fingerprint != index.fingerprint:
            raise CheckpointError(
                f"the weights in {index.folder} are not those that {MANIFEST_FILE} was written for: damaged, or "
                f"replaced; get them again, or delete {MANIFEST_FILE} if they were replaced on purpose"
            )
