"""The exceptions of model_runtime.

ModelRuntimeError
├── EncodingError              a conversation that has no V3.2 encoding
├── ContextOverflowError       prompt and completion do not fit
├── ToolsNotSupportedError     tools with a variant that does not know them (Speciale)
├── UnsupportedSchemaError     a tool's schema cannot be offered to the model
├── GeneratorError             the engine or a remote server failed
├── MemoryBudgetError          a bound of memory in which the model does not fit
├── CheckpointError            weights, config or tokenizer are missing, damaged or of another model
└── KVFileError                saved keys and values are missing, damaged or of another model; compute again
"""

from __future__ import annotations


class ModelRuntimeError(Exception):
    """Base of everything that model_runtime raises on purpose."""


class EncodingError(ModelRuntimeError):
    """A conversation that has no encoding; `index` is the position of the message in context + messages."""

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason if index is None else f"message {index}: {reason}")
        self.reason = reason
        self.index = index


class ContextOverflowError(ModelRuntimeError):
    """The prompt leaves no room for a completion."""

    def __init__(self, prompt_tokens: int, max_context: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens, the context holds {max_context}; "
            "shorten the conversation or choose a context strategy"
        )
        self.prompt_tokens = prompt_tokens
        self.max_context = max_context


class ToolsNotSupportedError(ModelRuntimeError):
    """Tools were given to a variant that was not trained for them."""


class UnsupportedSchemaError(ModelRuntimeError):
    """A tool's JSON Schema cannot be offered to the model."""


class GeneratorError(ModelRuntimeError):
    """The engine or a remote server failed; the message says which and what helps."""


class MemoryBudgetError(ModelRuntimeError):
    """The memory that a model may take is less than it needs; the message names what is enough."""


class CheckpointError(ModelRuntimeError):
    """Weights, config or tokenizer are missing, damaged or belong to another model."""


class KVFileError(ModelRuntimeError):
    """Saved keys and values cannot be written, or are missing, damaged or of something else; only time is lost."""
