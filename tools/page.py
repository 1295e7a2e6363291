"""A text as a page with numbered lines: what `open_page` shows a part of and `find` looks through.

Long lines are wrapped, so that every page can be read in parts; the numbers are the same in both tools.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

LINE_WIDTH = 100
PIECE_WIDTH = 10_000  # wrapping takes time with the square of what it is given
MAX_MATCHES = 20


@dataclass(frozen=True, slots=True)
class Page:
    id: str
    title: str
    lines: tuple[str, ...]

    @classmethod
    def of(cls, id: str, title: str, text: str) -> Page:
        wrapped = [part for line in text.expandtabs(4).splitlines() for part in _wrapped(line)]
        while wrapped and not wrapped[-1]:
            wrapped.pop()
        return cls(id, title, tuple(wrapped))

    def view(self, start_line: int = 1, num_lines: int = 40) -> str:
        """The lines from `start_line` on, under a heading that says where the page goes on."""
        total = len(self.lines)
        if total == 0:
            return f"{self._heading()}\n(empty)"
        start = min(max(start_line, 1), total)
        end = min(start + max(num_lines, 1) - 1, total)
        shown = [f"L{number}: {self.lines[number - 1]}" for number in range(start, end + 1)]
        more = f"\n(more: start_line={end + 1})" if end < total else ""
        return f"{self._heading()}\nlines {start}-{end} of {total}\n" + "\n".join(shown) + more

    def find(self, pattern: str) -> str:
        """The lines that contain `pattern`, whatever its case; it is text, not a regular expression."""
        wanted = " ".join(pattern.casefold().split())
        numbers = [i for i, line in enumerate(self.lines, 1) if wanted in " ".join(line.casefold().split())]
        if not wanted or not numbers:
            return f"No line of [{self.id}] contains {pattern!r}."
        shown = [f"L{number}: {self.lines[number - 1]}" for number in numbers[:MAX_MATCHES]]
        more = f"\n({len(numbers) - MAX_MATCHES} more lines match)" if len(numbers) > MAX_MATCHES else ""
        return f"{self._heading()}\n" + "\n".join(shown) + more

    def _heading(self) -> str:
        return f"[{self.id}] {self.title}".rstrip()


def _wrapped(line: str) -> list[str]:
    line = line.rstrip()
    if len(line) <= LINE_WIDTH:
        return [line]
    indent = " " * min(len(line) - len(line.lstrip()), LINE_WIDTH // 2)
    wrapped = []
    for piece in _pieces(line):
        wrapped += textwrap.wrap(piece, LINE_WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return wrapped


def _pieces(line: str) -> Iterator[str]:
    """A line in parts of a bounded length, cut between words where there are some."""
    start = 0
    while len(line) - start > PIECE_WIDTH:
        end = line.rfind(" ", start + 1, start + PIECE_WIDTH) + 1 or start + PIECE_WIDTH
        yield line[start:end]
        start = end
    yield line[start:]
