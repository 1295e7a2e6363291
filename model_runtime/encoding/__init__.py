"""The V3.2 chat format: messages to prompt, prompt to token ids, completion text back to reasoning, content, calls."""

from __future__ import annotations

from v32.model_runtime.encoding.dialect import V32, Dialect, Segment
from v32.model_runtime.encoding.encoder import encode_messages, encode_segments
from v32.model_runtime.encoding.parser import CompletionParser, parse_completion
from v32.model_runtime.encoding.tokenizer import ChatTokenizer, Detokenizer
from v32.model_runtime.errors import EncodingError

__all__ = [
    "V32",
    "ChatTokenizer",
    "CompletionParser",
    "Detokenizer",
    "Dialect",
    "EncodingError",
    "Segment",
    "encode_messages",
    "encode_segments",
    "parse_completion",
]
