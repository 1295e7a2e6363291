"""Events as JSON objects and back: one form for the journal and for `--json`. No files here.

`{"type": "user_said", "text": "…"}`: the type is the event's name in snake case, the rest are its fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from v32.agent.events import (
    CallResult,
    Completed,
    Durable,
    Event,
    Rebased,
    Stopped,
    ToolFinished,
    ToolsReturned,
    ToolStarted,
    UserSaid,
)
from v32.agent.limits import StopReason
from v32.model_runtime.messages import Completion, MalformedToolCall, ParsedCompletion, ToolCall, Usage

Record = dict[str, Any]


def to_record(event: Event) -> Record:
    """The JSON object of any event, durable or passing."""
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
    record = _plain(event)
    # A completion and a result are the event: their fields stand at the top, beside the type.
    for wrapped in ("completion", "result"):
        record |= record.pop(wrapped, {})
    return {"type": kind, **record}


def to_line(record: Mapping[str, Any]) -> str:
    """One line of JSON without the newline; what JSON cannot hold (a tool's private data) goes in as its repr."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=repr)


def from_record(record: Mapping[str, Any]) -> Durable:
    """The durable event of a record; `KeyError`, `TypeError` or `ValueError` if it is none."""
    return _READERS[record["type"]](record)


def _plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, sequences as lists, all the way down; anything else as it is, uncopied."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _completion(record: Mapping[str, Any]) -> Completion:
    parsed = dict(record["parsed"])
    parsed["tool_calls"] = [ToolCall(**call) for call in parsed["tool_calls"]]
    parsed["malformed"] = [MalformedToolCall(**call) for call in parsed["malformed"]]
    logprobs = record.get("logprobs")
    return Completion(
        token_ids=tuple(record["token_ids"]),
        parsed=ParsedCompletion(**parsed),
        finish_reason=record["finish_reason"],
        usage=Usage(**record["usage"]),
        logprobs=None if logprobs is None else tuple(logprobs),
    )


def _call_result(record: Mapping[str, Any]) -> CallResult:
    return CallResult(**{name: record[name] for name in CallResult.__dataclass_fields__})


def _rebased(record: Mapping[str, Any]) -> Rebased:
    values = {name: record[name] for name in Rebased.__dataclass_fields__}
    return Rebased(**values | {"kept": tuple(values["kept"]), "usage": Usage(**values["usage"])})


_READERS: dict[str, Callable[[Mapping[str, Any]], Durable]] = {
    "user_said": lambda record: UserSaid(record["text"], record["note"]),
    "completed": lambda record: Completed(_completion(record)),
    "tool_started": lambda record: ToolStarted(record["call_id"], record["name"], record["arguments"]),
    "tool_finished": lambda record: ToolFinished(_call_result(record)),
    "tools_returned": lambda record: ToolsReturned(tuple(map(_call_result, record["results"])), record["seconds"]),
    "rebased": _rebased,
    "stopped": lambda record: Stopped(StopReason(record["reason"]), record["detail"]),
}
