"""The V3.2 chat format: messages to prompt, prompt to token ids, completion text back to reasoning, content, calls."""

from __future__ import annotations

from ..errors import EncodingError
from .dialect import V32, Dialect, Segment
from .encoder import encode_messages, encode_segments
from .tokenizer import ChatTokenizer, Detokenizer

__all__ = [
    "V32",
    "ChatTokenizer",
    "Detokenizer",
    "Dialect",
    "EncodingError",
    "Segment",
    "encode_messages",
    "encode_segments",
]
