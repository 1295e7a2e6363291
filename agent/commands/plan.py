"""Say before loading whether a model fits, where its parts go, how long loading and an agent's turn will take."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from v32.agent.commands.errors import UsageError

if TYPE_CHECKING:
    import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", nargs="?", help="folder, cached repository, or deepseek-v3.2 (default: the embedded checkpoint)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu", metavar="NAME", help="a GPU, such as h200, b200, mi300x, rtx4090")
    where.add_argument("--this-machine", action="store_true", help="this machine, measured for a few seconds (default)")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="so many of --gpu (default 1)")
    parser.add_argument("--context", type=int, metavar="N", help="positions to plan for (default up to 32768)")
    parser.add_argument("--turn", default="2000,400", metavar="NEW,WRITTEN", help="tokens of a turn (default 2000,400)")
    parser.add_argument("--max-batch-tokens", type=int, default=512, metavar="N", help="of a pass (default 512)")
    parser.add_argument("--disk", type=float, metavar="GB/S", help="speed of the disk (default: measured)")
    dtypes = ("auto", "float32", "bfloat16", "fp8")
    parser.add_argument("--kv-dtype", choices=dtypes, default="auto", help="of cached keys and values (default auto)")
    parser.add_argument("--memory-budget", metavar="SIZE", help="a CPU's memory for weights and cache, such as 4GiB")
    parser.add_argument("--expert-cache", metavar="SIZE", help="a GPU's memory for experts, which lie in host memory")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """0 if it fits, 1 if not."""
    from v32.model_runtime.planning import Turn, as_text, make_plan

    if arguments.gpu is None and arguments.count != 1:
        raise UsageError(f"--count is {arguments.count}, but this machine is planned for as it is; say --gpu NAME")
    plan = make_plan(
        arguments.checkpoint,
        gpu_name=arguments.gpu,
        count=arguments.count,
        context=arguments.context,
        turn=Turn(*_pair(arguments.turn)),
        batch_tokens=arguments.max_batch_tokens,
        disk_bytes_per_second=None if arguments.disk is None else arguments.disk * 1e9,
        kv_dtype=_kv_dtype(arguments.kv_dtype),
        memory_budget=_bytes("--memory-budget", arguments.memory_budget),
        expert_cache=_bytes("--expert-cache", arguments.expert_cache),
    )
    print(json.dumps(plan.to_record(), ensure_ascii=False) if arguments.json else as_text(plan))
    return 0 if plan.fits else 1


def _kv_dtype(name: str) -> torch.dtype | None:
    import torch

    from v32.model_runtime.cache.pages import FP8_RECORDS

    return None if name == "auto" else FP8_RECORDS if name == "fp8" else getattr(torch, name)


def _bytes(option: str, size: str | None) -> int | None:
    from v32.model_runtime.sizes import parse_bytes

    try:
        return None if size is None else parse_bytes(size)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _pair(text: str) -> tuple[int, int]:
    try:
        new, written = (int(number) for number in text.split(","))
    except ValueError:
        raise UsageError(f"--turn is {text!r}; it must be two numbers, such as 2000,400") from None
    return new, written
