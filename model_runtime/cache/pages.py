"""The memory of the KV cache: pages of 64 tokens that several sequences may share.

    records[layer]     [pages, 64, kv_lora_rank | qk_rope_head_dim]   latent and rotary key of a token, as floats or as
                                                                      the bytes of an FP8 record (`kernels/kv_append`)
    index_keys[layer]  [pages, 64, index_head_dim]                    key of the lightning indexer

A page has the same number in every layer. Pages are counted by their holders (block tables, the prefix cache); the
last one to let go frees the page. The pool grows on demand, up to its budget. It knows nothing of tokens.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from v32.kernels.kv_append import record_bytes
from v32.model_runtime.checkpoint.arena import Arena
from v32.model_runtime.config import DeepseekV32Config

PAGE_SIZE = 64
FP8_RECORDS = torch.uint8
"""As `dtype` of a layout: the FP8 record of V3.2 that other engines keep, too."""
FIRST_PAGES = 16
HUGE_PAGE = 1 << 21


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What one token leaves behind in each of `num_layers` layers."""

    num_layers: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    index_head_dim: int
    dtype: torch.dtype = torch.float32
    """`FP8_RECORDS`: 656 bytes for V3.2's latents and rotary keys, and index keys in bfloat16."""
    device: torch.device | str = "cpu"

    @classmethod
    def of_model(
        cls,
        config: DeepseekV32Config,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        num_mtp_layers: int = 0,
    ) -> KVLayout:
        num_layers = config.num_hidden_layers + num_mtp_layers
        return cls(num_layers, config.kv_lora_rank, config.qk_rope_head_dim, config.index_head_dim, dtype, device)

    @property
    def dtype_name(self) -> str:
        return "fp8" if self.dtype == FP8_RECORDS else str(self.dtype).removeprefix("torch.")

    @property
    def record_width(self) -> int:
        """Entries of a record in `dtype`."""
        if self.dtype == FP8_RECORDS:
            return record_bytes(self.kv_lora_rank, self.qk_rope_head_dim)
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def index_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == FP8_RECORDS else self.dtype

    @property
    def token_bytes(self) -> int:
        index_bytes = self.index_head_dim * self.index_dtype.itemsize
        return self.num_layers * (self.record_width * self.dtype.itemsize + index_bytes)

    @property
    def page_bytes(self) -> int:
        return PAGE_SIZE * self.token_bytes


class LayerCache(NamedTuple):
    """All pages of one layer as flat rows; position p of a sequence is row `page * 64 + p % 64`, its slot."""

    records: Tensor  # [slots, C + R], or uint8 [slots, bytes of an FP8 record]
    latent: Tensor  # [slots, C], a view of float records
    k_pe: Tensor  # [slots, R], a view of float records
    index_keys: Tensor  # [slots, Di]


class PagePool:
    """Allocates, shares, copies and frees pages."""

    def __init__(self, layout: KVLayout, budget_bytes: int) -> None:
        self.layout = layout
        self.max_pages = budget_bytes // layout.page_bytes
        if self.max_pages < 1:
            raise ValueError(
                f"a KV budget of {budget_bytes} bytes holds no page; one page of {PAGE_SIZE} tokens takes "
                f"{layout.page_bytes} bytes"
            )
        self.layers: list[LayerCache] = []
        self._refs: list[int] = []
        self._free: list[int] = []  # a heap; entries whose page is in use again are stale
        self._num_used = 0
        self.on_copy: Callable[[int, int], None] | None = None
        """Told of each copied page and its copy, by those who keep the same pages elsewhere."""
        self.before_growth: Callable[[int], object] = lambda num_pages: None
        """Told how many pages there will be before their memory is taken."""
        self._grow(min(FIRST_PAGES, self.max_pages))

    @property
    def capacity(self) -> int:
        """Pages that have memory now."""
        return len(self._refs)

    @property
    def num_used(self) -> int:
        return self._num_used

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can still give out, growth included."""
        return self.max_pages - self._num_used

    def allocate(self, after: int = -1) -> int:
        """A page with one holder; the one behind page `after` if it is free, so that sequences lie in one piece."""
        if self.num_free == 0:
            raise MemoryError(f"all {self.max_pages} pages of the KV budget are in use; raise kv_budget_bytes")
        if self._num_used == self.capacity:
            self._grow(min(2 * self.capacity, self.max_pages))
        page = after + 1
        if after < 0 or page >= self.capacity or self._refs[page]:
            page = heapq.heappop(self._free)
            while self._refs[page]:
                page = heapq.heappop(self._free)
        self._refs[page] = 1
        self._num_used += 1
        return page

    def retain(self, page: int) -> None:
        assert self._refs[page] > 0, f"page {page} is free"
        self._refs[page] += 1

    def release(self, page: int) -> None:
        assert self._refs[page] > 0, f"page {page} is released once too often"
        self._refs[page] -= 1
        if self._refs[page] == 0:
            self._num_used -= 1
            heapq.heappush(self._free, page)
            if len(self._free) > 2 * self.capacity:
                self._free = [page for page, refs in enumerate(self._refs) if refs == 0]

    def num_holders(self, page: int) -> int:
        return self._refs[page]

    def copy(self, page: int, after: int = -1) -> int:
        """A new page with the same content."""
        new = self.allocate(after)
        self.copy_rows(page, new)
        if self.on_copy is not None:
            self.on_copy(page, new)
        return new

    def copy_rows(self, page: int, new: int) -> None:
        """Give a page the content of another."""
        here, there = (slice(p * PAGE_SIZE, (p + 1) * PAGE_SIZE) for p in (page, new))
        for layer in self.layers:
            layer.records[there] = layer.records[here]
            layer.index_keys[there] = layer.index_keys[here]

    def ensure(self, capacity: int) -> None:
        """Have memory for so many pages at least, whoever numbers them."""
        if capacity > self.capacity:
            self._grow(max(capacity, 2 * self.capacity))

    def check_integrity(self, holders: Iterable[Iterable[int]]) -> None:
        """Raise AssertionError unless `holders` (the pages of each holder) are all there are."""
        held = Counter(page for pages in holders for page in pages)
        for page, refs in enumerate(self._refs):
            assert refs == held[page], f"page {page} is counted {refs} times and held {held[page]} times"
        assert self._num_used == len(held), f"{self._num_used} pages are in use, {len(held)} are held"
        unused = {page for page, refs in enumerate(self._refs) if refs == 0}
        assert unused <= set(self._free), f"pages {sorted(unused - set(self._free))} are lost"

    def _grow(self, capacity: int) -> None:
        """Layer by layer, so that growing needs at most one layer of extra memory."""
        self.before_growth(capacity)
        layout, slots = self.layout, capacity * PAGE_SIZE
        for index in range(layout.num_layers):
            old = self.layers[index] if index < len(self.layers) else None
            records, index_keys = _rows(layout, slots)
            if old is not None:
                records[: len(old.records)] = old.records
                index_keys[: len(old.index_keys)] = old.index_keys
            latent, k_pe = records[:, : layout.kv_lora_rank], records[:, layout.kv_lora_rank :]
            layer = LayerCache(records, latent, k_pe, index_keys)
            self.layers[index : index + 1] = [layer]
        for page in range(len(self._refs), capacity):
            heapq.heappush(self._free, page)
            self._refs.append(0)


def _rows(layout: KVLayout, slots: int) -> tuple[Tensor, Tensor]:
    """Records and index keys of a layer, without values; on a CPU in huge pages, since tokens gather from all of it."""
    records, index_keys = (slots, layout.record_width), (slots, layout.index_head_dim)
    num_bytes = slots * layout.token_bytes // layout.num_layers
    if torch.device(layout.device).type == "cpu" and num_bytes >= HUGE_PAGE:
        memory = Arena(num_bytes)
        return memory.empty(records, layout.dtype), memory.empty(index_keys, layout.index_dtype)
    return (
        torch.empty(records, dtype=layout.dtype, device=layout.device),
        torch.empty(index_keys, dtype=layout.index_dtype, device=layout.device),
    )
