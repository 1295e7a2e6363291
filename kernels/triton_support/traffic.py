"""Counts what kernels read and write while the interpreter runs them: by load, and by 32-byte sector of memory.

with counted() as traffic:
    kernel(...)
traffic.read(x)        bytes of the sectors of x that were touched: what memory has to move if the cache keeps them
traffic.loaded         bytes that left the cache, every load of every program
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor
from triton.runtime import interpreter

SECTOR = 32


class Traffic:
    """Loads and stores so far."""

    def __init__(self) -> None:
        self.loaded = self.stored = 0
        self._sectors: dict[str, list[np.ndarray[Any, Any]]] = {"read": [], "written": []}

    def read(self, tensor: Tensor) -> int:
        return self._moved("read", tensor)

    def written(self, tensor: Tensor) -> int:
        return self._moved("written", tensor)

    def read_elsewhere(self, *tensors: Tensor) -> int:
        """Bytes of sectors outside of these tensors: scratch memory."""
        return len(self._all("read")) * SECTOR - sum(self.read(tensor) for tensor in tensors)

    def note(self, kind: str, pointers: Any, mask: Any) -> None:
        addresses = np.broadcast_to(pointers.data, np.shape(mask.data))[mask.data]
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        self._sectors[kind].append(np.unique(addresses // SECTOR))
        if kind == "read":
            self.loaded += addresses.size * size
        else:
            self.stored += addresses.size * size

    def _all(self, kind: str) -> np.ndarray[Any, Any]:
        self._sectors[kind] = [np.unique(np.concatenate([np.empty(0, np.uint64), *self._sectors[kind]]))]
        return self._sectors[kind][0]

    def _moved(self, kind: str, tensor: Tensor) -> int:
        start = tensor.untyped_storage().data_ptr()
        end = start + tensor.untyped_storage().nbytes()
        sectors = self._all(kind)
        return int(((sectors >= start // SECTOR) & (sectors * SECTOR < end)).sum()) * SECTOR


@contextmanager
def counted() -> Iterator[Traffic]:
    """What the interpreter moves inside; it has to have been made faithful (`interpret`) before."""
    traffic, builder = Traffic(), interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def counting_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        traffic.note("read", pointers, mask)
        return load(self, pointers, mask, *rest)

    def counting_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.note("written", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = counting_load, counting_store
    try:
        yield traffic
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
