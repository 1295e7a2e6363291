"""How fast a checkpoint decodes that does not fit: with a memory budget of a part of its files, against all in memory.

`python benchmarks/memory_budget.py FOLDER [--share 0.5] [--context 128] [--tokens 40] [--json]`

Each engine works in a process of its own. The greedy tokens have to be equal before a speed is printed, and the memory
that the bounded process took, beside the program itself, has to be within the budget.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from v32.model_runtime.checkpoint import load_checkpoint
from v32.model_runtime.checkpoint.index import CheckpointIndex
from v32.model_runtime.checkpoint.source import embedded_checkpoint
from v32.model_runtime.engine import Engine
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.memory_budget import load_within


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the files' size (default %(default)s)")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--budget", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.budget is not None:
        print(json.dumps(measure(options.folder, options.budget, options.context, options.tokens)))
        return
    budget = int(CheckpointIndex.from_dir(options.folder).num_bytes * options.share)
    whole, bounded = (_in_process(options, size) for size in (0, budget))
    assert bounded.pop("said") == whole.pop("said"), "the budget changed what was said"
    assert bounded["bytes"] <= budget, f"{bounded['bytes']} bytes were taken of a budget of {budget}"
    ratio = bounded["decode"] / whole["decode"]
    if options.json:
        print(json.dumps({"budget": budget, "whole": whole, "bounded": bounded, "ratio": ratio}))
        return
    for name, row in (("whole", whole), ("bounded", bounded)):
        print(name, "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    print(f"decoding at {100 * ratio:.0f}% of the speed in {budget / 2**20:.0f} MiB")


def _in_process(options: argparse.Namespace, budget: int) -> dict[str, Any]:
    numbers = [f"--{name}={getattr(options, name)}" for name in ("context", "tokens")]
    command = [sys.executable, __file__, str(options.folder), f"--budget={budget}", *numbers]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def measure(folder: Path, budget: int, context: int, num_tokens: int) -> dict[str, Any]:
    """Seconds of loading, tokens a second, hits, bytes of memory, and what was said."""
    _generate(Engine(load_checkpoint(embedded_checkpoint())), list(range(300, 400)), 20)  # the program, warm
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _memory("VmRSS"), time.perf_counter()
    engine = load_within(folder, budget) if budget else Engine(load_checkpoint(folder))
    loading = time.perf_counter() - started
    ids = torch.randint(10, engine.config.vocab_size, (context,), generator=torch.Generator().manual_seed(0)).tolist()
    said, speed = _generate(engine, ids, num_tokens)
    cache = engine.model.expert_cache
    hits = cache.num_hits / (cache.num_hits + cache.num_misses) if cache else 1.0
    return {"load": loading, "decode": speed, "hits": hits, "bytes": _memory("VmHWM") - before, "said": said}


def _generate(engine: Engine, ids: list[int], num_tokens: int) -> tuple[list[int], float]:
    sequence = engine.add(ids, SamplingParams(temperature=0.0, max_new_tokens=num_tokens + 4))
    while sequence.num_new_tokens < 4:
        engine.step()
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    return sequence.token_ids[len(ids) :], num_tokens / (time.perf_counter() - started)


def _memory(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key)) << 10


if __name__ == "__main__":
    main()
