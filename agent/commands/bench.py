"""Measure how fast a checkpoint runs here, and beside transformers on the same weights where that is installed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from v32.agent.commands.errors import UsageError

if TYPE_CHECKING:
    from v32.kernels.benchmark import KernelFigure
    from v32.model_runtime.benchmark import EngineName, Measurement

EPILOG = (
    "Logits, or with --kernels results, are checked against the reference first: without that, no speed is printed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("folder", nargs="?", type=Path, help="a checkpoint; without it, the embedded one")
    parser.add_argument("--make", metavar="CONFIG", help="first write random FP8 weights of that size: s600m")
    parser.add_argument("--kernels", action="store_true", help="measure the CPU kernels instead of a checkpoint")
    parser.add_argument("--roofline", action="store_true", help="print what a GPU needs at least for the 671B model")
    parser.add_argument("--alone", action="store_true", help="leave transformers out")
    parser.add_argument("--prefill", default="512,2048", metavar="N,…", help="prompt lengths (%(default)s)")
    parser.add_argument("--context", default="128,1024", metavar="N,…", help="contexts of decoding (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="sequences decoded together; 0: none (%(default)s)")
    parser.add_argument(
        "--session", type=int, default=20, metavar="N", help="turns of a session; 0: none (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="medians over so many rounds (%(default)s)")
    parser.add_argument("--memory-budget", metavar="SIZE", help="such as 4GiB, of v32; experts beyond it are streamed")
    parser.add_argument("--speculative", type=int, default=0, metavar="N", help="tokens v32's MTP layer drafts a step")
    parser.add_argument("--chart", type=Path, metavar="PNG", help="draw the speeds (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="one JSON object a measurement")


def run(arguments: argparse.Namespace) -> int:
    if arguments.kernels:
        return _kernels(arguments.json)
    if arguments.roofline:
        from v32.kernels.roofline import main as print_roofline

        print_roofline(["--json"] if arguments.json else [])
        return 0
    from v32.model_runtime.benchmark import Plan, compare, make_checkpoint
    from v32.model_runtime.checkpoint.source import resolve_source

    if arguments.make:
        if arguments.folder is None:
            raise UsageError("--make needs the folder to write to")
        make_checkpoint(arguments.make, arguments.folder)
    folder = resolve_source(arguments.folder)
    if arguments.speculative:
        _check_drafts(folder, arguments)
    engines: list[EngineName] = ["v32"]
    if not arguments.alone and importlib.util.find_spec("transformers"):
        engines.append("transformers")
    budget = None if arguments.memory_budget is None else _bytes(arguments.memory_budget)
    plan = Plan(
        _numbers(arguments.prefill),
        _numbers(arguments.context),
        arguments.batch,
        arguments.session,
        memory_budget=budget,
        num_drafts=arguments.speculative,
    )
    measurements = []
    for measurement in compare(folder, plan, engines=engines, rounds=arguments.rounds):
        measurements.append(measurement)
        print(json.dumps(asdict(measurement)) if arguments.json else _as_text(measurement), flush=True)
    for line in [] if arguments.json else _ratios(measurements):
        print(line)
    if arguments.chart:
        _draw(measurements, arguments.chart)
    return 0


def _check_drafts(folder: Path, arguments: argparse.Namespace) -> None:
    from v32.model_runtime.loading import check_drafts

    if arguments.memory_budget is not None:
        raise UsageError("--speculative works with all weights in memory; leave out --memory-budget")
    try:
        check_drafts(folder, arguments.speculative)
    except ValueError as error:
        raise UsageError(f"--speculative: {error}") from None


def _bytes(size: str) -> int:
    from v32.model_runtime.sizes import parse_bytes

    try:
        return parse_bytes(size)
    except ValueError as error:
        raise UsageError(f"--memory-budget: {error}") from None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise UsageError(f"{text!r} is not a list of numbers such as 512,2048") from None
    if any(number < 1 for number in numbers):
        raise UsageError(f"{text!r} holds a number below 1")
    return numbers


def _as_text(m: Measurement) -> str:
    return f"{m.engine:14}{m.name:9}{m.size or '':>6}  {m.value:9.2f} {m.unit}"


def _ratios(measurements: Sequence[Measurement]) -> list[str]:
    """v32 over transformers, so that above 1 is better, where both were measured."""
    theirs = {(m.name, m.size): m.value for m in measurements if m.engine == "transformers"}
    rows = [(m, theirs[m.name, m.size]) for m in measurements if m.engine == "v32" and (m.name, m.size) in theirs]
    return [
        f"ratio         {m.name:9}{m.size or '':>6}  {m.value / other if '/' in m.unit else other / m.value:9.2f} x"
        for m, other in rows
    ]


def _draw(measurements: Sequence[Measurement], file: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("--chart needs matplotlib: pip install matplotlib") from None
    panels = {unit: [m for m in measurements if m.unit == unit] for unit in ("tokens/s", "s", "GiB")}
    labels = {unit: list(dict.fromkeys((m.name, m.size) for m in found)) for unit, found in panels.items()}
    figure = Figure(figsize=(11, 4), layout="constrained")
    widths = [len(labels[unit]) + 1 for unit in panels]
    engines = list(dict.fromkeys(m.engine for m in measurements))
    for axes, (unit, found) in zip(figure.subplots(1, 3, width_ratios=widths), panels.items(), strict=True):
        for number, engine in enumerate(engines):
            own = [m for m in found if m.engine == engine]
            at = [labels[unit].index((m.name, m.size)) + 0.8 * number / len(engines) for m in own]
            bars = axes.bar(at, [m.value for m in own], 0.8 / len(engines), label=engine, align="edge")
            axes.bar_label(bars, fmt=_three_digits, fontsize=7)
        names = [f"{name}\n{size or ''}" for name, size in labels[unit]]
        axes.set_xticks([i + 0.4 for i in range(len(names))], names, fontsize=8)
        axes.set_yscale("linear" if unit == "GiB" else "log")
        axes.margins(y=0.15)
        axes.set_title(unit)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(loc="upper right", fontsize=8)
    figure.suptitle("Prompts and decoding: higher is better; waiting and memory: lower is better", fontsize=9)
    figure.savefig(file, dpi=150)


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _kernels(as_json: bool) -> int:
    from v32.kernels.benchmark import KernelFailure, measure_kernels

    def show(figure: KernelFigure) -> None:
        print(json.dumps(asdict(figure)) if as_json else _kernel_text(figure), flush=True)

    try:
        for figure in measure_kernels():
            show(figure)
    except KernelFailure as error:
        print(f"v32 bench: {error}", file=sys.stderr)
        return 1
    return 0


def _kernel_text(figure: KernelFigure) -> str:
    share = f"  {100 * figure.of_peak:3.0f}% of {figure.peak:.0f}" if figure.peak else ""
    error = f"  error {figure.error:.0e}" if figure.error is not None else ""
    return f"{figure.kernel:14}{figure.shape:28}{figure.value:9.1f} {figure.unit}{share}{error}"
