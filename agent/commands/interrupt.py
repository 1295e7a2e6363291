"""Ctrl-C while a command gets ready: the process ends at once. Nothing has been said or done yet that could be lost.

As an exception it would be felt only at the next `await` of the event loop, and where a library that is being loaded
calls Python from C++, it would abort the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Also a decorator. For the main thread, which signals are for."""
    before = signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(*_: object) -> None:
    os.write(2, b"\ninterrupted\n" if os.isatty(2) else b"interrupted\n")
    os._exit(130)
