"""A bar on the terminal while weights are loaded; nothing where standard error is no terminal or loading is quick."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 30
QUICK_SECONDS, REDRAW_SECONDS = 0.5, 0.1


def loading_bar(stream: TextIO | None = None) -> Callable[[int, int], None] | None:
    """What to call with the bytes loaded so far and in all; it removes the bar when all are loaded."""
    stream = stream or sys.stderr
    return _Bar(stream) if stream.isatty() else None


class _Bar:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = time.monotonic() + QUICK_SECONDS
        self._is_drawn = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now >= self._next:
            filled = WIDTH * done // total
            line = f"loading {'#' * filled}{'.' * (WIDTH - filled)} {done / 2**30:.1f} of {total / 2**30:.1f} GiB"
            self._write("\r" + line)
            self._next, self._is_drawn = now + REDRAW_SECONDS, True
        elif done >= total and self._is_drawn:
            self._write("\r\x1b[2K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
