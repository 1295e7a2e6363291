"""Stands for a CUDA graph on a CPU: operations and kernel launches of a step, run again on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from v32.kernels.triton_support.gpu import Gpu

# What waits for the device, has a shape that depends on values, or makes a tensor of Python's numbers.
_IMPOSSIBLE = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "equal", "item")


class Tape:
    """A `Capture`: records each step once; a replay runs none of the model's Python."""

    def __init__(self) -> None:
        self.num_replays = self.num_launches = 0

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        step()  # as `CudaGraphs` does: what is made once is made here
        recording = _Recording()
        launch = Gpu.launch

        def recorded(gpu: Gpu, kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
            with _disable_current_modes():
                launch(gpu, kernel, grid, *args, **options)
            recording.calls.append((lambda: launch(gpu, kernel, grid, *args, **options), None))
            self.num_launches += 1

        Gpu.launch = recorded  # type: ignore[method-assign]
        try:
            with recording:
                step()
        finally:
            Gpu.launch = launch  # type: ignore[method-assign]

        def replay() -> None:
            self.num_replays += 1
            recording.replay()

        return replay


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[[], Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not any(name.startswith(word) for word in _IMPOSSIBLE), f"{name} cannot be recorded"
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.calls.append((lambda: func(*args, **kwargs), result))
        return result

    def replay(self) -> None:
        for run, kept in self.calls:
            for old, new in zip(_tensors(kept), _tensors(run()), strict=False):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
