"""This machine, measured in a few seconds: disk, weights read for one token, arithmetic, and what a layer costs beside.

The model's own operations are timed, not a copy loop: what they reach is what a plan may count on.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from v32.model_runtime.planning.hardware import Rates
from v32.model_runtime.planning.memory import WeightForm

_SAMPLE_BYTES = 256 << 20
_SMALLEST_SAMPLE = 32 << 20
_WEIGHT_SHAPE = (4096, 2048)
_NUM_WEIGHTS = 8
"""So many matrices in turn: together they are larger than a cache."""
_ROWS = 256


def disk_bytes_per_second(files: Sequence[Path]) -> float:
    """How fast files are read that no cache holds: the largest of `files`, or a scratch file where all are small."""
    largest = max(files, key=lambda file: file.stat().st_size, default=None)
    if largest is not None and largest.stat().st_size >= _SMALLEST_SAMPLE:
        return _read_cold(largest)
    with tempfile.NamedTemporaryFile(
        dir=largest.parent if largest and os.access(largest.parent, os.W_OK) else None
    ) as f:
        block = os.urandom(1 << 20)
        for _ in range(_SMALLEST_SAMPLE * 2 >> 20):
            f.write(block)
        f.flush()
        os.fsync(f.fileno())
        return _read_cold(Path(f.name))


def cpu_rates(form: WeightForm) -> Rates:
    """The rates of this CPU for weights in `form`."""
    read, multiplied = _weight_rates(form)
    seconds, layers = _small_step()
    return Rates(
        read,
        multiplied,
        0.0 if form.is_native else seconds / layers,
        _conversion_rate(form) if form.dequantize else None,
        "measured now with the model's own operations",
        seconds if form.is_native else 0.0,
    )


def _read_cold(file: Path) -> float:
    with file.open("rb", buffering=0) as stream:
        size = min(file.stat().st_size, _SAMPLE_BYTES)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        start, done = time.perf_counter(), 0
        while done < size and (piece := stream.read(min(8 << 20, size - done))):
            done += len(piece)
        return done / (time.perf_counter() - start)


@torch.inference_mode()
def _weight_rates(form: WeightForm) -> tuple[float, float]:
    """Bytes of weights a second for one row, and operations a second for many."""
    from v32.model_runtime.model.linear import Linear

    rows, columns = _WEIGHT_SHAPE
    layers = [_filled(Linear(columns, rows), form) for _ in range(_NUM_WEIGHTS)]
    one, many = torch.randn(1, columns).to(form.dtype), torch.randn(_ROWS, columns).to(form.dtype)
    seconds = _seconds(lambda: [layer(one) for layer in layers])
    num_bytes = len(layers) * rows * columns * (1 if form.keeps_fp8 else form.dtype.itemsize)
    return num_bytes / seconds, 2 * _ROWS * rows * columns / _seconds(lambda: layers[0](many))


def _filled(layer: torch.nn.Module, form: WeightForm) -> torch.nn.Module:
    from v32.model_runtime.checkpoint.fp8 import quantize_blocks

    weight = torch.randn(_WEIGHT_SHAPE) * 0.02
    if not form.keeps_fp8:
        layer.weight = torch.nn.Parameter(weight.to(form.dtype), requires_grad=False)
        return layer
    codes, scale = quantize_blocks(weight)
    layer.weight = torch.nn.Parameter(codes, requires_grad=False)
    layer.weight_scale_inv = torch.nn.Parameter(scale, requires_grad=False)
    return layer


def _conversion_rate(form: WeightForm) -> float:
    """Weights a second that loading brings from FP8 to their dtype."""
    from v32.kernels.fp8_gemm import dequantize
    from v32.model_runtime.checkpoint.fp8 import quantize_blocks

    codes, scale = quantize_blocks(torch.randn(_WEIGHT_SHAPE) * 0.02)
    return codes.numel() / _seconds(lambda: dequantize(codes, scale, form.dtype))


def _small_step() -> tuple[float, int]:
    """A decoding step of the embedded checkpoint, whose arithmetic is next to nothing, and its number of layers. The
    native step runs them in one call, so that what is left is the step's own; PyTorch's operations are the layers'."""
    from v32.model_runtime.checkpoint.loader import load_checkpoint
    from v32.model_runtime.checkpoint.source import embedded_checkpoint
    from v32.model_runtime.engine import Engine
    from v32.model_runtime.generators.generator import SamplingParams

    engine = Engine(load_checkpoint(embedded_checkpoint(), verify=False))
    engine.add(list(range(2, 66)), SamplingParams(temperature=0.0, max_new_tokens=40))
    engine.step()
    seconds = [_seconds(engine.step, repeat=1) for _ in range(24)]
    layers = engine.config.num_hidden_layers
    engine.close()
    return median(seconds), layers


def _seconds(work: Callable[[], object], repeat: int = 5) -> float:
    """The median of some runs, after one that does not count."""
    if repeat > 1:
        work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)
