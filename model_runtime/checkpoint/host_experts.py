"""Routed experts in host memory, for a cache of those used last on a device: an `ExpertSource`.

On a CUDA device the memory is page-locked, so that experts are copied beside the CPU's work and in the order of the
stream: after the products that still read the place, before those that wait for it. That has not been run on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from v32.kernels.moe_experts import ExpertWeights
from v32.model_runtime.checkpoint.arena import Arena
from v32.model_runtime.checkpoint.expert_files import ExpertFiles
from v32.model_runtime.model.expert_cache import ExpertKey


class HostExperts:
    """All experts of `files`, read once; their scales, a ten-thousandth, lie on the device for good."""

    def __init__(self, files: ExpertFiles, device: torch.device) -> None:
        keys = list(files.keys())
        self._files, self.place_bytes = files, files.place_bytes
        self.num_experts = len(keys)
        self._arena = Arena(len(keys) * self.place_bytes)
        places = self._arena.empty((len(keys), self.place_bytes), torch.uint8)
        self._host = {key: files.place(key, place) for key, place in zip(keys, places, strict=True)}
        self._scales = {key: _to(weights[3:], device) for key, weights in self._host.items()}
        for key, weights in self._host.items():
            files.read(key, weights)
        if device.type == "cuda":
            # Registered as it lies: torch would round page-locked memory up to a power of two.
            runtime = torch.cuda.cudart()
            torch.cuda.check_error(runtime.cudaHostRegister(places.data_ptr(), places.nbytes, 0))

    def place(self, key: ExpertKey, memory: Tensor) -> ExpertWeights:
        matrices = self._files.place(key, memory)[:3]
        return ExpertWeights(*matrices, *self._scales[key])

    def read(self, key: ExpertKey, weights: ExpertWeights) -> None:
        for place, host in zip(weights[:3], self._host[key][:3], strict=True):
            place.copy_(host, non_blocking=True)


def _to(scales: tuple[Tensor | None, ...], device: torch.device) -> tuple[Tensor | None, ...]:
    return tuple(None if scale is None else scale.to(device) for scale in scales)
