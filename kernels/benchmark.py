"""The CPU kernels: each held against its reference, then timed against what this machine's memory and units allow."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from v32.kernels.fp8_gemm import dequantize
from v32.kernels.fp8_gemm.cpu import linear
from v32.kernels.index_score import reference as index_score
from v32.kernels.moe_experts import ExpertWeights, reference
from v32.kernels.moe_experts.cpu import moe_experts
from v32.kernels.moe_route.reference import moe_route
from v32.kernels.native import library, pointer
from v32.kernels.rms_norm import reference as rms_norm
from v32.kernels.rope import reference as rope
from v32.kernels.sample import reference as sample
from v32.kernels.sparse_mla.reference import sparse_mla
from v32.kernels.swiglu import reference as swiglu
from v32.kernels.topk_select import reference as topk_select

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
    for case in _cases():
        error = _error(case.run(), case.expected.double(), case.kernel)
        speed, limit = case.amount / _median(case.run) / 1e9, bandwidth if case.unit == "GB/s" else peak
        yield KernelFigure(case.kernel, case.shape, speed, case.unit, limit, error)


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


class _Case(NamedTuple):
    """An operation that `decoder_step` uses inside, called alone; `amount`: bytes or operations of a run."""

    kernel: str
    shape: str
    run: Callable[[], Tensor]
    expected: Tensor
    amount: float
    unit: str


def _cases() -> Iterator[_Case]:
    generator = torch.Generator().manual_seed(5)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q, k, w = randn(1, 64, 128), randn(32768, 128), randn(1, 64)
    scores, expected = torch.empty(1, 32768), index_score.index_score(q, k, w)
    run = _caller("v32_index_score", q, k, w, 1, 32768, 64, 128, scores, gives=scores)
    yield _Case("index_score", "1 x 32768, 64 heads of 128", run, expected, 2 * 64 * 128 * 32768, "GFLOP/s")

    many, visible = randn(16, 65536), torch.full((16,), 65536)
    chosen, expected = torch.empty(16, 2048, dtype=torch.int64), topk_select.topk_select(many, 2048, visible)
    run = _caller("v32_topk_select", many, visible, 16, 65536, 2048, chosen, gives=chosen)
    yield _Case("topk_select", "16 x 2048 of 65536", run, expected, many.nbytes, "GB/s")

    x, up, weight, y = randn(4096, 4096), randn(4096, 4096), randn(4096), torch.empty(4096, 4096)
    run = _caller("v32_rms_norm", x, weight, 4096, 4096, 1e-6, y, gives=y)
    yield _Case("rms_norm", "4096 x 4096", run, rms_norm.rms_norm(x, weight, 1e-6), 2 * x.nbytes, "GB/s")
    run = _caller("v32_swiglu", x, up, x.numel(), y, gives=y)
    yield _Case("swiglu", "4096 x 4096", run, swiglu.swiglu(x, up), 3 * x.nbytes, "GB/s")
    heads, angles = x.view(4096, 64, 64), randn(4096, 32)
    expected = rope.rope(heads, angles.cos(), angles.sin(), True)
    run = _caller("v32_rope", heads, angles.cos(), angles.sin(), 4096, 64, 32, 1, gives=heads)  # in place
    yield _Case("rope", "4096 x 64 heads of 64", run, expected, 2 * x.nbytes, "GB/s")

    logits, uniforms = 4 * randn(16, 129280), torch.rand(16, generator=generator).double()
    parameters = torch.ones(16), torch.full((16,), 0.95), uniforms
    ids, logprobs = torch.empty(16, dtype=torch.int64), torch.empty(16)
    nothing = torch.full((16, 4040), -1, dtype=torch.int32)
    run = _caller("v32_sample", logits, 16, 129280, *parameters, nothing, ids, logprobs, gives=ids)
    yield _Case("sample", "16 x 129280", run, sample.sample(logits, *parameters), logits.nbytes, "GB/s")

    logits, bias, indices = randn(4096, 256), randn(256) / 8, torch.empty(4096, 8, dtype=torch.int64)
    run = _caller("v32_moe_route", logits, bias, 4096, 256, 8, 8, 4, indices, torch.empty(4096, 8), gives=indices)
    yield _Case("moe_route", "4096 x 8 of 256", run, moe_route(logits, bias, 8, 8, 4, True)[1], logits.nbytes, "GB/s")

    q, records, out = randn(4, 64, 576), randn(65536, 576), torch.empty(4, 64, 512)
    slots = torch.rand(4, 65536, generator=generator).topk(2048).indices
    run = _caller("v32_sparse_mla", q, records, slots, 4, 64, 2048, 512, 576, 576**-0.5, out, gives=out)
    parts = q[..., :512], q[..., 512:], records[:, :512], records[:, 512:]
    expected = sparse_mla(*parts, slots, 576**-0.5)
    flops = 2 * 4 * 64 * 2048 * (576 + 512)
    yield _Case("sparse_mla", "4 x 64 heads, 2048 rows", run, expected, flops, "GFLOP/s")


def _caller(name: str, *arguments: Tensor | float, gives: Tensor) -> Callable[[], Tensor]:
    """Runs a native function; the tensors stay alive as long as what is returned."""
    loaded = library()
    passed = [_passed(argument) for argument in arguments]

    def run(_alive: tuple[object, ...] = arguments) -> Tensor:
        getattr(loaded, name)(*passed)
        return gives

    return run


def _passed(argument: Tensor | float) -> object:
    if isinstance(argument, Tensor):
        return pointer(argument)
    return ctypes.c_int64(argument) if isinstance(argument, int) else ctypes.c_float(argument)


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
