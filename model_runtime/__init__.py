"""Tokens and messages of DeepSeek-V3.2: chat format, grammar, model, engine, and the chat model made of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v32.model_runtime.chat import ChatModel as ChatModel
    from v32.model_runtime.errors import CheckpointError as CheckpointError
    from v32.model_runtime.errors import ContextOverflowError as ContextOverflowError
    from v32.model_runtime.errors import EncodingError as EncodingError
    from v32.model_runtime.errors import GeneratorError as GeneratorError
    from v32.model_runtime.errors import ModelRuntimeError as ModelRuntimeError
    from v32.model_runtime.errors import ToolsNotSupportedError as ToolsNotSupportedError
    from v32.model_runtime.errors import UnsupportedSchemaError as UnsupportedSchemaError
    from v32.model_runtime.generators.generator import SamplingParams as SamplingParams
    from v32.model_runtime.loading import load_model as load_model
    from v32.model_runtime.messages import Completion as Completion
    from v32.model_runtime.messages import ToolCall as ToolCall
    from v32.model_runtime.messages import ToolResult as ToolResult
    from v32.model_runtime.messages import ToolSpec as ToolSpec
    from v32.model_runtime.messages import Usage as Usage
    from v32.model_runtime.scoring import generate_ids as generate_ids
    from v32.model_runtime.scoring import score as score
    from v32.model_runtime.transcript import Transcript as Transcript

# torch and the like are imported at the first use of what needs them.
_HOMES = {
    "ChatModel": "chat",
    "CheckpointError": "errors",
    "Completion": "messages",
    "ContextOverflowError": "errors",
    "EncodingError": "errors",
    "GeneratorError": "errors",
    "ModelRuntimeError": "errors",
    "SamplingParams": "generators.generator",
    "ToolCall": "messages",
    "ToolResult": "messages",
    "ToolSpec": "messages",
    "ToolsNotSupportedError": "errors",
    "Transcript": "transcript",
    "UnsupportedSchemaError": "errors",
    "Usage": "messages",
    "generate_ids": "scoring",
    "load_model": "loading",
    "score": "scoring",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
