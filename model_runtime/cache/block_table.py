"""The pages of one sequence: position p lives in row p % 64 of page pages[p // 64].

    pages   7   9   4          length 150: two full pages, 22 rows of the third
           [64][64][22 ····]

Tables share pages freely; whoever writes to a shared page first gets a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from v32.model_runtime.cache.pages import PAGE_SIZE, PagePool


class BlockTable:
    """`reserve` rows, write them, `advance`; `truncate` to any earlier length; `fork`; `close`."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.length = 0
        self.pages: list[int] = []
        self._slots = torch.empty(0, dtype=torch.int64, device=pool.layout.device)

    @classmethod
    def share(cls, pool: PagePool, pages: Iterable[int], length: int) -> BlockTable:
        """A table over pages that others hold; `length` positions of them are used."""
        table = cls(pool)
        for page in pages:
            pool.retain(page)
            table._set_page(len(table.pages), page)
        table.length = length
        assert len(table.pages) == _pages_of(length)
        return table

    def fork(self, length: int | None = None) -> BlockTable:
        """A second sequence with the same first `length` positions (default: all)."""
        length = self.length if length is None else length
        self._check_length(length)
        return BlockTable.share(self.pool, self.pages[: _pages_of(length)], length)

    def pages_needed(self, num_tokens: int) -> int:
        """Pages that `reserve(num_tokens)` takes from the pool, copies of shared pages included."""
        new = _pages_of(self.length + num_tokens) - len(self.pages)
        return max(new, 0) + len(self._shared_tail(num_tokens))

    def reserve(self, num_tokens: int) -> None:
        """Make the next positions writable; raises MemoryError and changes nothing if the pool is exhausted."""
        needed = self.pages_needed(num_tokens)
        if needed > self.pool.num_free:
            raise MemoryError(f"{num_tokens} tokens need {needed} pages, {self.pool.num_free} are free")
        for index in self._shared_tail(num_tokens):
            shared = self.pages[index]
            self._set_page(index, self.pool.copy(shared, self.pages[index - 1] if index else -1))
            self.pool.release(shared)
        while len(self.pages) < _pages_of(self.length + num_tokens):
            self._set_page(len(self.pages), self.pool.allocate(self.pages[-1] if self.pages else -1))

    def advance(self, num_tokens: int) -> None:
        """The next positions have been written."""
        assert _pages_of(self.length + num_tokens) <= len(self.pages), "advance without reserve"
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        self._check_length(length)
        for page in self.pages[_pages_of(length) :]:
            self.pool.release(page)
        del self.pages[_pages_of(length) :]
        self.length = length

    def slots(self, start: int, end: int) -> Tensor:
        """Rows of the positions start..end-1 in every layer's cache, int64."""
        return self._slots[start:end]

    def rows(self, end: int) -> slice | Tensor:
        """As `slots(0, end)`; a slice where the pages lie in one piece, so that reading them needs no gather."""
        pages = self.pages[: _pages_of(end)]
        if pages == list(range(pages[0], pages[0] + len(pages))):
            return slice(pages[0] * PAGE_SIZE, pages[0] * PAGE_SIZE + end)
        return self._slots[:end]

    def close(self) -> None:
        """Let go of all pages, reserved ones included."""
        self.truncate(0)

    def _shared_tail(self, num_tokens: int) -> list[int]:
        """Indices of existing pages that would be written to and have other holders."""
        touched = range(self.length // PAGE_SIZE, len(self.pages)) if num_tokens else range(0)
        return [index for index in touched if self.pool.num_holders(self.pages[index]) > 1]

    def _set_page(self, index: int, page: int) -> None:
        start = index * PAGE_SIZE
        if start >= len(self._slots):
            self._slots = torch.cat((self._slots, self._slots.new_empty(max(start, 4 * PAGE_SIZE))))
        torch.arange(page * PAGE_SIZE, (page + 1) * PAGE_SIZE, out=self._slots[start : start + PAGE_SIZE])
        self.pages[index : index + 1] = [page]

    def _check_length(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"length {length} is outside of the table's 0..{self.length}")


def _pages_of(length: int) -> int:
    return (length + PAGE_SIZE - 1) // PAGE_SIZE
