"""Records of a journal as events; a record that is none is an error that names its line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from v32.agent.errors import JournalError
from v32.agent.events import Durable
from v32.agent.records import Record, from_record


def read_events(records: Sequence[Record], path: str | os.PathLike[str]) -> Iterator[Durable]:
    for number, record in enumerate(records, start=2):
        try:
            yield from_record(record)
        except (KeyError, TypeError, ValueError) as error:
            raise JournalError(f"{path}, line {number} is no event: {error!r}; restore the file from a copy") from error
