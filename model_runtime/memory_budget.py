"""One bound for all that a model takes of a CPU's memory, and who has what of it.

    │ weights that every token reads │ workspace of a pass │ experts used last ──▶   ◀── keys and values │
                                                             give way as the others grow, up to their share

The program itself, Python with torch, comes on top. Only headers are read here.
"""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from v32.model_runtime.cache.pages import FIRST_PAGES, PAGE_SIZE, KVLayout, PagePool
from v32.model_runtime.checkpoint import load_checkpoint
from v32.model_runtime.checkpoint.expert_files import place_bytes
from v32.model_runtime.checkpoint.index import CheckpointIndex, TensorInfo
from v32.model_runtime.checkpoint.loader import Progress
from v32.model_runtime.checkpoint.slots import ROUTED_EXPERT
from v32.model_runtime.config import DeepseekV32Config, Numerics
from v32.model_runtime.engine import Engine
from v32.model_runtime.errors import MemoryBudgetError
from v32.model_runtime.model.expert_cache import ExpertCache
from v32.model_runtime.planning import memory
from v32.model_runtime.planning.tensors import SCALE, grouped, stored_tensors

SMALLEST_BATCH = 64
_KV_SHARE, _MOST_KV = 0.5, 1 << 30
_WORKSPACE_SHARE = 0.25
_M_MMAP_THRESHOLD = -3  # of malloc.h
_OBJECT_BYTES = 20 << 10
"""Names, places and tensors of one expert as Python objects; measured 13 KiB and what their heap loses."""
_HEAP_BYTES = 4 << 20
"""What the heap keeps between allocations, and small things; measured 2 MiB."""


@dataclass(frozen=True, slots=True)
class MemoryShares:
    """How a budget is divided; see `divide`."""

    budget: int
    resident_bytes: int
    workspace_bytes: int
    num_pages: int
    """What keys and values may grow to."""
    layout: KVLayout
    page_bytes: int
    """Of one page while pages grow: one layer's old ones are there too."""
    place_bytes: int
    num_experts: int
    max_batch_tokens: int

    @property
    def expert_places(self) -> int | None:
        """Places to begin with, while there are few pages; None if all experts fit for good."""
        if self.num_places(self.num_pages) == self.num_experts:
            return None
        return self.num_places(min(FIRST_PAGES, self.num_pages))

    @property
    def kv_budget_bytes(self) -> int:
        """Of the engine."""
        return self.num_pages * self.layout.page_bytes

    def num_places(self, num_pages: int) -> int:
        """Experts that have room beside so many pages."""
        free = self.budget - self.resident_bytes - self.workspace_bytes - num_pages * self.page_bytes
        return min(free // self.place_bytes, self.num_experts) if self.place_bytes else 0

    def watch(self, pool: PagePool, experts: ExpertCache) -> None:
        """From now on experts give way before the pool takes more memory, and what is freed goes back to the system."""
        _keep_heap_small()
        pool.before_growth = lambda num_pages: experts.shrink(self.num_places(num_pages))
        pool.before_growth(pool.capacity)


def divide(
    folder: Path,
    budget: int,
    *,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype = torch.float32,
    kv_budget_bytes: int | None = None,
    max_batch_tokens: int = 512,
    max_context: int | None = None,
) -> MemoryShares:
    """Divide a budget in bytes for a checkpoint. Raises `MemoryBudgetError` naming the smallest that works.

    Keys and values may have `kv_budget_bytes`, or what `max_context` takes, or half of what the weights leave. A pass
    has at most `max_batch_tokens`, or as many as a quarter of what the weights leave has workspace for.
    """
    config, index = DeepseekV32Config.from_dir(folder), CheckpointIndex.from_dir(folder)
    form = memory.WeightForm(dtype, False, is_native=memory.is_native(dtype))
    experts = _experts(index, config)
    place = max(map(place_bytes, experts), default=0)
    work_form = replace(form, is_native=form.is_native and kv_dtype == torch.float32)
    resident = _resident_bytes(index, config, form, experts)
    if not work_form.is_native:
        resident += memory.absorbed_bytes(config, dtype)
    layout = KVLayout.of_model(config, kv_dtype)
    page = layout.page_bytes * (layout.num_layers + 1) // layout.num_layers
    asked = kv_budget_bytes or (-(-max_context // PAGE_SIZE) * page if max_context else 0)
    kv = max(asked or min(int((budget - resident) * _KV_SHARE), _MOST_KV), page)
    batch_tokens = max_batch_tokens

    def workspace() -> int:
        context = max_context or min(kv // page * PAGE_SIZE, config.max_position_embeddings)
        return memory.workspace_bytes(config, work_form, batch_tokens, context) + _HEAP_BYTES

    def needed() -> int:
        return resident + workspace() + max(asked, page) + place

    while batch_tokens > SMALLEST_BATCH and (workspace() > (budget - resident) * _WORKSPACE_SHARE or needed() > budget):
        batch_tokens = max(batch_tokens // 2, SMALLEST_BATCH)
    while not asked and kv > page and needed() > budget:
        kv = max(kv // 2, page)
    smallest = needed()
    if budget < smallest:
        raise MemoryBudgetError(
            f"a memory budget of {_mib(budget)} is too small for {folder}: the smallest that works is {_mib(smallest)} "
            f"(weights that every token reads {_mib(resident)}, one expert {_mib(place)}, the rest for keys, values "
            "and the workspace of a pass)"
        )
    work = workspace()
    num_pages = min(kv, budget - resident - work - place) // page
    return MemoryShares(budget, resident, work, num_pages, layout, page, place, len(experts), batch_tokens)


def load_within(
    folder: Path,
    budget: int,
    *,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    numerics: Numerics = "float",
    kv_budget_bytes: int | None = None,
    max_batch_tokens: int = 512,
    max_context: int | None = None,
    progress: Progress | None = None,
) -> Engine:
    """An engine over a checkpoint that takes so many bytes at most; see `divide`. `kv_dtype`: default `dtype`."""
    shares = divide(
        folder,
        budget,
        dtype=dtype,
        kv_dtype=kv_dtype or dtype,
        kv_budget_bytes=kv_budget_bytes,
        max_batch_tokens=max_batch_tokens,
        max_context=max_context,
    )
    model = load_checkpoint(
        folder,
        dtype=dtype,
        dequantize=False,
        numerics=numerics,
        expert_places=shares.expert_places,
        progress=progress,
    )
    engine = Engine(
        model,
        max_batch_tokens=shares.max_batch_tokens,
        kv_budget_bytes=shares.kv_budget_bytes,
        kv_dtype=kv_dtype,
        max_context=max_context,
    )
    if model.expert_cache is not None:
        shares.watch(engine.pool, model.expert_cache)
    return engine


def _resident_bytes(
    index: CheckpointIndex, config: DeepseekV32Config, form: memory.WeightForm, experts: list[list[TensorInfo]]
) -> int:
    """Everything but the routed experts; of these, scales and the objects that stand for them."""
    held = memory.weights(grouped(stored_tensors(index), config), config, form)
    scales = (index.get(info.name + SCALE) for infos in experts for info in infos)
    scale_bytes = sum(4 * math.prod(info.shape) for info in scales if info is not None)
    return held.loaded_bytes - held.part("routed experts").loaded_bytes + scale_bytes + len(experts) * _OBJECT_BYTES


def _experts(index: CheckpointIndex, config: DeepseekV32Config) -> list[list[TensorInfo]]:
    """The matrices of each routed expert, draft layers left out."""
    experts: dict[str, list[TensorInfo]] = {}
    for name, info in index.items():
        if (
            ROUTED_EXPERT.search(name)
            and not name.endswith(SCALE)
            and int(name.split(".")[2]) < config.num_hidden_layers
        ):
            experts.setdefault(name.rsplit(".", 2)[0], []).append(info)
    return list(experts.values())


def _keep_heap_small() -> None:
    """Large pieces of memory go back to the system when they are freed. glibc's heap would learn to keep them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 256 << 10)


def _mib(num_bytes: int) -> str:
    """Rounded up, so that what is named works."""
    return f"{-(-num_bytes // 2**20):,} MiB".replace(",", "")
