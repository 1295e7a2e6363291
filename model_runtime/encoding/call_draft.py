"""One tool call while it is being written: its name, its arguments so far, and their JSON text as it grows.

Enters: names and values in the order they were written; leaves: pieces of JSON text, then a ToolCall, or a
MalformedToolCall with the reason. Knows nothing of tags or streams.
"""

from __future__ import annotations

import json
import math
from typing import Any

from v32.model_runtime.messages import MalformedToolCall, ToolCall

_quote = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make a new encoder for every piece


class CallDraft:
    def __init__(self, index: int, call_id: str) -> None:
        self.index = index
        self.id = call_id
        self.name: str | None = None
        self.raw: list[str] = []
        """Everything that was written between the opening tag and the end, the tags included."""
        self.failure: tuple[str, str] | None = None
        """Reason and repair hint, once the call cannot be saved."""
        self._arguments: dict[str, Any] = {}
        self._json: list[str] = []
        self._is_whole = False

    @property
    def num_parameters(self) -> int:
        return len(self._arguments)

    def has(self, key: str) -> bool:
        return key in self._arguments

    def open_string(self, key: str) -> str:
        """The JSON text up to and including the opening quote of a string value."""
        return self._write(f'{self._key(key)}"')

    def write_string(self, text: str) -> str:
        return self._write(_quote(text)[1:-1])

    def close_string(self, key: str, value: str) -> str:
        self._arguments[key] = value
        return self._write('"')

    def add_string(self, key: str, value: str) -> str:
        return self.open_string(key) + self.write_string(value) + self.close_string(key, value)

    def add_json(self, key: str, value: Any, raw: str) -> str:
        """`raw` is the JSON text as the model wrote it; it is kept, for parsing and dumping would change it."""
        text = self._write(f"{self._key(key)}{raw}")
        self._arguments[key] = value
        return text

    def set_all(self, arguments: dict[str, Any], raw: str) -> str:
        """All arguments at once, from a JSON object in place of parameters."""
        self._arguments, self._is_whole = arguments, True
        return self._write(raw)

    def close(self) -> str:
        """The end of the JSON text."""
        if self._is_whole:
            return ""
        return self._write("}" if self._json else "{}")

    def finished(self) -> ToolCall:
        assert self.name is not None
        return ToolCall(self.id, self.name, self._arguments, "".join(self._json))

    def malformed(self) -> MalformedToolCall:
        assert self.failure is not None
        reason, hint = self.failure
        return MalformedToolCall(self.id, self.name, "".join(self.raw), reason, hint)

    def _key(self, key: str) -> str:
        return f"{', ' if self._json else '{'}{_quote(key)}: "

    def _write(self, text: str) -> str:
        if text:
            self._json.append(text)
        return text


def read_json(raw: str) -> tuple[Any, bool]:
    """The one JSON value in `raw`, and whether an object in it names a key twice (the last one counts).

    Raises ValueError, in words for the model, for anything else: NaN, Infinity, numbers beyond a double, trailing text.
    """
    repeated = False

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        members = dict(pairs)
        repeated |= len(members) < len(pairs)
        return members

    try:
        value = json.loads(raw, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=build)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value, repeated


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number
