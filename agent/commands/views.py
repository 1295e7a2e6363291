"""Where a command shows a run: as text for people, or as one JSON object a line for programs."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Protocol

from v32.agent.events import Durable, Event
from v32.agent.records import to_line, to_record
from v32.agent.result import RunResult


class View(Protocol):
    def show(self, item: Event | RunResult) -> None: ...


class JsonView:
    """One JSON object a line; `deltas=False` leaves out the pieces and keeps the whole events."""

    def __init__(self, *, deltas: bool = True) -> None:
        self._deltas = deltas

    def show(self, item: Event | RunResult) -> None:
        if isinstance(item, RunResult):
            record = item.to_record()
        elif self._deltas or isinstance(item, Durable):
            record = to_record(item)
        else:
            return
        sys.stdout.buffer.write(to_line(record).encode("utf-8", "replace") + b"\n")
        sys.stdout.buffer.flush()


async def follow(events: AsyncIterator[Event | RunResult], view: View) -> RunResult:
    """Show a stream to its end and return its result."""
    result: RunResult | None = None
    async with aclosing(events):  # type: ignore[type-var]
        async for item in events:
            view.show(item)
            if isinstance(item, RunResult):
                result = item
    assert result is not None
    return result
