"""Where tokens come from: the seam, the engine in this process, servers elsewhere, and a script for tests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v32.model_runtime.generators.generator import Finished as Finished
    from v32.model_runtime.generators.generator import SamplingParams as SamplingParams
    from v32.model_runtime.generators.generator import Token as Token
    from v32.model_runtime.generators.generator import TokenConstraint as TokenConstraint
    from v32.model_runtime.generators.generator import TokenGenerator as TokenGenerator
    from v32.model_runtime.generators.generator import TokenMatcher as TokenMatcher
    from v32.model_runtime.generators.local import LocalGenerator as LocalGenerator
    from v32.model_runtime.generators.scripted import ScriptedGenerator as ScriptedGenerator
    from v32.model_runtime.generators.sglang import SGLangGenerator as SGLangGenerator
    from v32.model_runtime.generators.vllm import VLLMGenerator as VLLMGenerator

# torch and httpx are imported by those who generate.
_HOMES = {
    "Finished": "generator",
    "LocalGenerator": "local",
    "SGLangGenerator": "sglang",
    "SamplingParams": "generator",
    "ScriptedGenerator": "scripted",
    "Token": "generator",
    "TokenConstraint": "generator",
    "TokenGenerator": "generator",
    "TokenMatcher": "generator",
    "VLLMGenerator": "vllm",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
