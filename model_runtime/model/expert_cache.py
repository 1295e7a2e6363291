"""Routed experts that do not all fit: a number of places in memory, filled when experts are wanted.

    wanted ─▶ in a place already: a hit
           └▶ else read from the source into the place whose expert was used least recently: a miss

The source is the checkpoint's files or another memory; what the places lie in is the caller's choice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from v32.kernels.moe_experts import ExpertWeights


class ExpertKey(NamedTuple):
    """Expert `expert` of decoder layer `layer`."""

    layer: int
    expert: int


class ExpertSource(Protocol):
    """Where the weights of all experts can be had."""

    @property
    def place_bytes(self) -> int:
        """What the largest expert takes."""

    def place(self, key: ExpertKey, memory: Tensor) -> ExpertWeights:
        """The expert's tensors as they lie in a place, uint8 [place_bytes]; nothing is read."""

    def read(self, key: ExpertKey, weights: ExpertWeights) -> None:
        """Fill what `place` has laid out. Raises `CheckpointError` where the weights are damaged or gone."""


class ExpertCache:
    """The experts used last, of all layers, in `num_places` places."""

    def __init__(
        self, source: ExpertSource, memory: Tensor, *, on_shrink: Callable[[Tensor], object] = lambda memory: None
    ) -> None:
        """`memory`: uint8 [places, place_bytes]; `on_shrink` is given places that are no longer used."""
        self._source = source
        self._memory = memory
        self._on_shrink = on_shrink
        self._held: OrderedDict[ExpertKey, tuple[int, ExpertWeights]] = OrderedDict()  # least recently used first
        self._free = list(range(len(memory)))
        self.num_places = len(memory)
        self.num_hits = self.num_misses = 0

    @property
    def place_bytes(self) -> int:
        return self._source.place_bytes

    def hold(self, layer: int, experts: Sequence[int]) -> list[ExpertWeights]:
        """The weights of at most `num_places` experts of a layer, in place until the next call."""
        assert len(experts) <= self.num_places
        keys = [ExpertKey(layer, expert) for expert in experts]
        missing = [key for key in keys if key not in self._held]
        self.num_misses += len(missing)
        self.num_hits += len(keys) - len(missing)
        for key in keys:
            if key in self._held:
                self._held.move_to_end(key)
        for key in missing:
            self._load(key)
        return [self._held[key][1] for key in keys]

    def layout(self, key: ExpertKey) -> ExpertWeights:
        """See `LayerExperts.layout`."""
        return self._source.place(key, self._memory[0])

    def shrink(self, num_places: int) -> None:
        """Do with so many places from now on, if it is less."""
        assert num_places >= 1
        if num_places >= self.num_places:
            return
        for key in [key for key, (place, _) in self._held.items() if place >= num_places]:
            del self._held[key]
        self._free = [place for place in self._free if place < num_places]
        self._on_shrink(self._memory[num_places : self.num_places])
        self.num_places = num_places

    def _load(self, key: ExpertKey) -> None:
        place = self._free.pop() if self._free else self._held.popitem(last=False)[1][0]
        weights = self._source.place(key, self._memory[place])
        try:
            self._source.read(key, weights)
        except BaseException:
            self._free.append(place)
            raise
        self._held[key] = place, weights


class LayerExperts(NamedTuple):
    """The routed experts of one layer."""

    cache: ExpertCache
    layer: int

    @property
    def num_places(self) -> int:
        return self.cache.num_places

    def hold(self, experts: Sequence[int]) -> list[ExpertWeights]:
        """See `ExpertCache.hold`."""
        return self.cache.hold(self.layer, experts)

    def layout(self, expert: int) -> ExpertWeights:
        """An expert's tensors over the first place, whatever that holds: their shapes and dtypes."""
        return self.cache.layout(ExpertKey(self.layer, expert))
