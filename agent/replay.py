"""A journal's records, applied as events one after another; one that cannot be is an error that names its line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from v32.agent.errors import JournalError
from v32.agent.events import Durable
from v32.agent.records import Record, from_record
from v32.model_runtime.errors import EncodingError


def replay(records: Sequence[Record], path: str | os.PathLike[str], apply: Callable[[Durable], None]) -> None:
    for number, record in enumerate(records, start=2):
        try:
            apply(from_record(record))
        except (AttributeError, KeyError, TypeError, ValueError, EncodingError) as error:
            raise JournalError(f"{path}, line {number} is no event: {error!r}; restore the file from a copy") from error
