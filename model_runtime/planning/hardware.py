"""The machines that a plan is made for: GPUs by name, with their makers' figures, and this machine, measured.

Figures of GPUs are peaks from data sheets, dense, without sparsity; a plan multiplies them by `EFFICIENCY` and says so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from v32.model_runtime.planning.errors import PlanError

GB = 10**9
EFFICIENCY = 0.5
"""Share of a data sheet's bandwidth and arithmetic that a plan counts on; an assumption."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast one device works, and where the figures come from."""

    weight_bytes_per_second: float
    """Reading weights for one token, in the form in which they lie in memory."""
    flops_per_second: float
    """Multiplying weights with many tokens at once."""
    layer_seconds: float
    """What a layer costs beside its arithmetic: starting operations, waiting for other ranks."""
    converted_per_second: float | None
    """Weights brought to another form while loading; None where nothing is converted."""
    origin: str
    step_seconds: float = 0.0
    """What a step costs beside its layers: scheduling, sampling."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model is to run: `count` equal devices of one machine."""

    name: str
    kind: str
    """`cpu` or `cuda`, as torch has it."""
    count: int
    memory_bytes: int
    """Of one device, as far as a process can have it."""

    def __str__(self) -> str:
        return f"{self.count} x {self.name}" if self.count > 1 else self.name


@dataclass(frozen=True, slots=True)
class GPU:
    """Peaks of a data sheet: decimal gigabytes, gigabytes a second, 10**12 operations a second."""

    memory_gb: float
    bandwidth: float
    bf16_tflops: float
    fp8_tflops: float | None


GPUS = {
    "a100": GPU(80, 2039, 312, None),
    "b200": GPU(180, 8000, 2250, 4500),
    "b300": GPU(288, 8000, 2250, 4500),
    "h100": GPU(80, 3350, 989, 1979),
    "h20": GPU(96, 4000, 148, 296),
    "h200": GPU(141, 4800, 989, 1979),
    "l40s": GPU(48, 864, 362, 733),
    "mi300x": GPU(192, 5300, 1307, 2615),
    "mi325x": GPU(256, 6000, 1307, 2615),
    "mi355x": GPU(288, 8000, 2517, 5033),
    "rtx3090": GPU(24, 936, 71, None),
    "rtx4090": GPU(24, 1008, 165, 330),
    "rtx5090": GPU(32, 1792, 209, 419),
    "rtxpro6000": GPU(96, 1792, 252, 503),
}
_LAYER_SECONDS = 300e-6
"""About sixty operations of a layer, each launched from Python; assumed. Recorded decoding (one GPU) needs less."""
_MESSAGE_SECONDS = 30e-6
"""The two sums over ranks of a layer; an assumption."""


def gpu(name: str, count: int = 1) -> tuple[Device, Rates]:
    """A GPU by name; raises `PlanError` for one that is not in the table."""
    key = "".join(filter(str.isalnum, name.lower())).removeprefix("nvidia").removeprefix("geforce").removeprefix("amd")
    if key not in GPUS:
        raise PlanError(f"unknown GPU {name!r}; known: {', '.join(GPUS)}, or use --this-machine on the machine itself")
    if count < 1:
        raise PlanError(f"--count is {count}; it must be 1 or more")
    sheet = GPUS[key]
    device = Device(key.upper(), "cuda", count, int(sheet.memory_gb * GB))
    return device, _sheet_rates(sheet, count)


def this_machine(threads: int | None = None) -> Device:
    """The GPUs that torch sees, else the CPU with the memory that is available now."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        free = min(torch.cuda.mem_get_info(index)[0] for index in range(count))
        return Device(torch.cuda.get_device_name(0), "cuda", count, free)
    cores = threads or torch.get_num_threads()
    return Device(f"this machine's CPU ({cores} threads)", "cpu", 1, available_memory())


def available_memory() -> int:
    """Bytes that a new process can have without swapping, a container's limit included."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return min(available, limit - (used or 0)) if limit is not None else available


def known_rates(device: Device) -> Rates | None:
    """The data sheet's rates of a GPU of this machine, if its name is in the table."""
    words = "".join(filter(str.isalnum, device.name.lower()))
    found = [key for key in sorted(GPUS, key=len, reverse=True) if key in words]
    return _sheet_rates(GPUS[found[0]], device.count) if found else None


def _sheet_rates(sheet: GPU, count: int) -> Rates:
    return Rates(
        sheet.bandwidth * GB * EFFICIENCY,
        sheet.bf16_tflops * 1e12 * EFFICIENCY,
        _LAYER_SECONDS + (_MESSAGE_SECONDS if count > 1 else 0.0),
        None,
        f"{EFFICIENCY:.0%} of the data sheet's peaks and {_LAYER_SECONDS * 1e6:.0f} us a layer; assumed, not measured",
    )


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
