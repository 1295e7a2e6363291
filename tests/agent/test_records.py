"""Events survive the way through JSON unchanged."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v32.agent.events import (
    CallResult,
    Completed,
    Durable,
    Rebased,
    Stopped,
    ToolFinished,
    ToolsReturned,
    ToolStarted,
    UserSaid,
)
from v32.agent.limits import StopReason
from v32.agent.records import from_record, to_line, to_record
from v32.model_runtime.messages import (
    Completion,
    MalformedToolCall,
    ParsedCompletion,
    ReasoningDelta,
    ToolCall,
    ToolCallStarted,
    Usage,
)

text = st.text(max_size=8)
arguments = st.dictionaries(text, st.integers() | text | st.lists(st.booleans(), max_size=2), max_size=3)
usage = st.builds(Usage, st.integers(0, 9), seconds=st.dictionaries(text, st.floats(0, 9), max_size=2))
calls = st.lists(st.builds(ToolCall, text, text, arguments, text), max_size=2)
malformed = st.lists(st.builds(MalformedToolCall, text, st.none() | text, text, text, text), max_size=2)
parsed = st.builds(ParsedCompletion, text, text, calls, malformed, st.lists(text, max_size=2), st.booleans())
completion = st.builds(
    Completion,
    st.lists(st.integers(0, 200_000), max_size=4).map(tuple),
    parsed,
    st.sampled_from(["stop", "tool_calls", "length"]),
    usage,
    st.none() | st.lists(st.floats(-9, 0), max_size=3).map(tuple),
)
result = st.builds(
    CallResult, text, text, text, st.sampled_from(["ok", "error", "timeout"]), st.floats(0, 9), arguments
)
events: st.SearchStrategy[Durable] = st.one_of(
    st.builds(UserSaid, text, text),
    st.builds(Completed, completion),
    st.builds(ToolStarted, text, text, arguments),
    st.builds(ToolFinished, result),
    st.builds(ToolsReturned, st.lists(result, max_size=3).map(tuple), st.floats(0, 9)),
    st.builds(Rebased, text, st.lists(st.integers(0, 9), max_size=4).map(tuple), text, usage),
    st.builds(Stopped, st.sampled_from(StopReason), text),
)


@given(event=events)
def test_every_durable_event_survives_json(event: Durable) -> None:
    assert from_record(json.loads(to_line(to_record(event)))) == event


def test_the_type_is_the_name_in_snake_case() -> None:
    assert to_record(UserSaid("hi")) == {"type": "user_said", "text": "hi", "note": ""}
    assert to_record(ReasoningDelta("so")) == {"type": "reasoning_delta", "text": "so"}
    assert to_record(ToolCallStarted(0, "f")) == {"type": "tool_call_started", "index": 0, "name": "f"}


def test_data_that_json_cannot_hold_does_not_stop_the_journal() -> None:
    event = ToolFinished(CallResult("call_0", "f", "text", data={"lock": threading.Lock(), (1, 2): b"bytes"}))
    data = json.loads(to_line(to_record(event)))["data"]
    assert data["lock"].startswith("<unlocked _thread.lock")
    assert data["(1, 2)"] == "b'bytes'"


@pytest.mark.parametrize("record", [{}, {"type": "nonsense"}, {"type": "user_said"}, {"type": "reasoning_delta"}])
def test_what_is_no_durable_event_is_refused(record: dict[str, str]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_record(record)
