"""The CPU kernels: each held against its reference, then timed against what this machine's memory and units allow."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from v32.kernels.fp8_gemm import dequantize
from v32.kernels.fp8_gemm.cpu import linear
from v32.kernels.moe_experts import ExpertWeights, reference
from v32.kernels.moe_experts.cpu import moe_experts
from v32.kernels.native import library, pointer

_REPEATS = 7


class KernelFailure(RuntimeError):
    """A kernel's result is not that of its reference, or there are no kernels: no speed is given."""


@dataclass(frozen=True, slots=True)
class KernelFigure:
    """`error`: largest difference from the reference, relative to the largest value; `peak`: the machine's limit."""

    kernel: str
    shape: str
    value: float
    unit: str
    peak: float = 0.0
    error: float | None = None

    @property
    def of_peak(self) -> float:
        return self.value / self.peak if self.peak else 0.0


def measure_kernels() -> Iterator[KernelFigure]:
    """Bandwidth and FLOP peak first, then the kernels. Raises `KernelFailure` before a speed that was not earned."""
    if library() is None:
        raise KernelFailure("there are no native kernels here; see the warning above")
    bandwidth, peak = read_bandwidth(), _flops()
    yield KernelFigure("read", "512 MiB", bandwidth, "GB/s")
    yield KernelFigure("fma", "float32 product 1024", peak, "GFLOP/s")
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.float32):
        weights = [_weight(2048, 4096, dtype, seed) for seed in range(6)]  # more than the caches hold
        for count in (1, 16, 256):
            x = torch.randn(count, 4096)
            error = _error(linear(x, *weights[0]), x.double() @ _floats(*weights[0]).double().T, "linear")
            seconds = _median(lambda x=x, w=weights: [linear(x, *each) for each in w]) / len(weights)  # type: ignore[misc]
            shape = f"{str(dtype)[6:]} {count} x 4096 x 2048"
            if count == 1:
                yield KernelFigure("linear", shape, weights[0][0].nbytes / seconds / 1e9, "GB/s", bandwidth, error)
            else:
                yield KernelFigure("linear", shape, 2e-9 * count * 4096 * 2048 / seconds, "GFLOP/s", peak, error)
    yield from _experts(bandwidth, peak)


def _experts(bandwidth: float, peak: float) -> Iterator[KernelFigure]:
    experts = [_expert(seed) for seed in range(32)]
    size = sum(part.nbytes for part in experts[0] if part is not None)
    for count in (1, 64):
        x, indices, weights = torch.randn(count, 1024), torch.rand(count, 32).topk(4).indices, torch.rand(count, 4)
        expected = reference.moe_experts(x, indices, weights, experts)
        error = _error(moe_experts(x, indices, weights, experts), expected.double(), "moe_experts")
        seconds = _median(lambda args=(x, indices, weights, experts): moe_experts(*args))  # type: ignore[misc]
        shape = f"fp8 {count} x 4 of 32 x 512"
        if count == 1:
            yield KernelFigure("moe_experts", shape, 4 * size / seconds / 1e9, "GB/s", bandwidth, error)
        else:
            flops = 2e-9 * count * 4 * 3 * 1024 * 512
            yield KernelFigure("moe_experts", shape, flops / seconds, "GFLOP/s", peak, error)


def _weight(rows: int, cols: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor | None]:
    values = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    if dtype != torch.float8_e4m3fn:
        return values.to(dtype), None
    return (values * 100).to(dtype), torch.full((-(-rows // 128), -(-cols // 128)), 0.01)


def _expert(seed: int) -> ExpertWeights:
    parts = [_weight(512, 1024, torch.float8_e4m3fn, 3 * seed + i) for i in range(2)]
    parts.append(_weight(1024, 512, torch.float8_e4m3fn, 3 * seed + 2))
    codes, scales = zip(*((codes, scale * 0.03) for codes, scale in parts if scale is not None))
    return ExpertWeights(*codes, *scales)


def _floats(weight: Tensor, scale: Tensor | None) -> Tensor:
    return weight.float() if scale is None else dequantize(weight, scale)


def _error(found: Tensor | None, expected: Tensor, kernel: str) -> float:
    if found is None:
        raise KernelFailure(f"{kernel} was not computed by the native kernels")
    error = float((found.double() - expected).abs().max() / expected.abs().max())
    if not error < 1e-5:
        raise KernelFailure(f"{kernel} differs from its reference by {error:.1e} of the largest value")
    return error


def read_bandwidth() -> float:
    """GB/s of reading what no cache holds; needs the native library."""
    loaded, memory = library(), torch.ones(1 << 27)
    assert loaded is not None
    size = ctypes.c_int64(memory.nbytes)
    return memory.nbytes / _median(lambda: loaded.v32_read(pointer(memory), size)) / 1e9


def _flops() -> float:
    """GFLOP/s of PyTorch's own matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2e-9 * 1024**3 / _median(lambda: a @ b)


def _median(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
