"""What would be launched: the launchers run on tensors without memory and their launches are written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from v32.kernels.triton_support.gpu import GPUS, Gpu

_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


class Launch(NamedTuple):
    """A kernel as Triton would specialise it for one call."""

    kernel: Any
    signature: dict[str, str]  # parameter -> type, or "constexpr"
    values: dict[str, Any]  # of the constexprs
    aligned: tuple[str, ...]  # parameters that 16 divides
    options: dict[str, int]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__).lstrip("_")

    @property
    def config(self) -> str:
        """The tuning constants, short enough for a table."""
        parts = []
        for name, value in self.values.items():
            if value is True:
                parts.append(name.lower())
            elif value is not False and name.isupper():
                parts.append(f"{name.lower()}={value}")
        return " ".join([*parts, f"w{self.options['num_warps']} s{self.options['num_stages']}"])


@dataclass(frozen=True)
class Recorder(Gpu):
    """A `Gpu` that keeps the launches instead of making them."""

    launches: list[Launch] = field(default_factory=list)

    @classmethod
    def of(cls, arch: str) -> Recorder:
        return cls(**asdict(GPUS[arch]))

    def launch(
        self, kernel: Any, grid: Sequence[int], *args: Any, num_warps: int, num_stages: int, **meta: Any
    ) -> None:
        signature, values, aligned = {}, dict(meta), []
        for name, value in zip(kernel.arg_names, args):
            if isinstance(value, Tensor):
                signature[name] = _POINTERS[value.dtype]
                is_aligned = value.storage_offset() * value.element_size() % 16 == 0
            elif isinstance(value, float):
                signature[name], is_aligned = "fp32", False
            elif value == 1:  # Triton makes it a constant
                values[name], is_aligned = 1, False
            else:
                signature[name] = "i32" if value < 2**31 else "i64"
                is_aligned = value % 16 == 0
            if is_aligned:
                aligned.append(name)
        signature |= dict.fromkeys(values, "constexpr")
        ordered = {name: signature[name] for name in kernel.arg_names}
        options = {"num_warps": num_warps, "num_stages": num_stages}
        self.launches.append(Launch(kernel, ordered, values, tuple(aligned), options))
