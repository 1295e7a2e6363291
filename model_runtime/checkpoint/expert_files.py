"""Routed experts read from the checkpoint's files when they are wanted: an `ExpertSource`.

They are read with pread into memory of our own, not mapped: what a mapping holds is counted as this process's memory
without being ours to bound, and a page fault reads a few pages where one call reads a matrix. The system may keep what
was read in its page cache, which it takes back when memory is short. Scales, a ten-thousandth, are read at once.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from v32.kernels.moe_experts import ExpertWeights
from v32.model_runtime.checkpoint.index import CheckpointIndex, TensorInfo
from v32.model_runtime.checkpoint.slots import Slot, check_finite, check_fp8
from v32.model_runtime.model.expert_cache import ExpertKey

_ALIGNMENT = 64
MATRICES = ("gate_proj", "up_proj", "down_proj")


class ExpertFiles:
    """The three matrices of every expert, and their scales if they are FP8."""

    def __init__(self, index: CheckpointIndex, slots: Sequence[Slot]) -> None:
        """`slots`: of all routed experts, named `model.layers.L.mlp.experts.E.gate_proj.weight` and so on."""
        self._index = index
        self._matrices: dict[ExpertKey, list[TensorInfo]] = {}
        self._scales: dict[str, Tensor] = {}
        self._sound: set[ExpertKey] = set()
        by_name = {slot.info.name: slot for slot in slots}
        for name in by_name:
            parts = name.split(".")
            if parts[-2] == MATRICES[0]:
                names = [".".join((*parts[:-2], matrix, "weight")) for matrix in MATRICES]
                self._matrices[ExpertKey(int(parts[2]), int(parts[5]))] = [by_name[name].info for name in names]
        for slot in slots:
            if slot.scale is not None:
                scale = torch.empty(slot.scale.shape, dtype=slot.scale.dtype)
                self._scales[slot.info.name] = index.read_into(slot.scale.name, scale).float()
        self.place_bytes = max(place_bytes(infos) for infos in self._matrices.values())

    def keys(self) -> Iterable[ExpertKey]:
        return self._matrices.keys()

    def place(self, key: ExpertKey, memory: Tensor) -> ExpertWeights:
        tensors, start = [], 0
        for info in self._matrices[key]:
            tensors.append(memory[start : start + info.num_bytes].view(info.dtype).view(info.shape))
            start += _aligned(info.num_bytes)
        return ExpertWeights(*tensors, *(self._scales.get(info.name) for info in self._matrices[key]))

    def read(self, key: ExpertKey, weights: ExpertWeights) -> None:
        infos = self._matrices[key]
        for info, tensor in zip(infos, weights[:3], strict=True):
            self._index.read_into(info.name, tensor)
        if key not in self._sound:
            for info, tensor, scale in zip(infos, weights[:3], weights[3:], strict=True):
                if isinstance(scale, Tensor):
                    check_fp8(info, tensor, scale)
                else:
                    check_finite(info, tensor)
            self._sound.add(key)


def place_bytes(infos: Sequence[TensorInfo]) -> int:
    """Whole pages, so that a place can be given back to the system."""
    return -(-sum(_aligned(info.num_bytes) for info in infos) // mmap.PAGESIZE) * mmap.PAGESIZE


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
