"""Checkpoints in Hugging Face layout: found on this machine, recognised, checked, loaded, written."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v32.model_runtime.checkpoint.index import CheckpointIndex as CheckpointIndex
    from v32.model_runtime.checkpoint.loader import check_tokenizer as check_tokenizer
    from v32.model_runtime.checkpoint.loader import load_checkpoint as load_checkpoint
    from v32.model_runtime.checkpoint.source import resolve_source as resolve_source
    from v32.model_runtime.checkpoint.variant import VariantInfo as VariantInfo
    from v32.model_runtime.checkpoint.variant import VariantWarning as VariantWarning
    from v32.model_runtime.checkpoint.variant import detect_variant as detect_variant
    from v32.model_runtime.checkpoint.writer import write_checkpoint as write_checkpoint

# torch is imported by those who load or write weights, not by those who ask for a variant.
_HOMES = {
    "CheckpointIndex": "index",
    "check_tokenizer": "loader",
    "load_checkpoint": "loader",
    "resolve_source": "source",
    "VariantInfo": "variant",
    "VariantWarning": "variant",
    "detect_variant": "variant",
    "write_checkpoint": "writer",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
