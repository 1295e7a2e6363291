"""Latencies of the sandbox beside a bare interpreter, measured in turns so that both see the same machine.

`python benchmarks/sandbox.py [--rounds N] [--json]`: milliseconds, median and minimum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Awaitable
from typing import TypeVar

import anyio

from v32.sandboxes import SandboxPolicy, start_sandbox

CELLS = 20
T = TypeVar("T")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=30)
    arguments.add_argument("--json", action="store_true", help="one JSON object a line")
    options = arguments.parse_args()
    samples = anyio.run(measure, options.rounds)
    for name, seconds in samples.items():
        row = {
            "what": name,
            "p50_ms": 1e3 * statistics.median(seconds),
            "min_ms": 1e3 * min(seconds),
            "n": len(seconds),
        }
        if options.json:
            print(json.dumps(row))
        else:
            print(f"{name:34} {row['p50_ms']:8.2f} ({row['min_ms']:.2f})")


async def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, by its name."""
    samples: dict[str, list[float]] = defaultdict(list)

    async def timed(name: str, work: Awaitable[T]) -> T:
        start = time.perf_counter()
        result = await work
        samples[name].append(time.perf_counter() - start)
        return result

    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(["/usr/bin/python3", "-c", "pass"], check=True)
        samples["bare python3 -c pass"].append(time.perf_counter() - start)
        sandbox = await timed("open", start_sandbox(SandboxPolicy()))
        await timed("first cell", sandbox.run_python("x = 1"))
        for _ in range(CELLS):
            await timed("cell", sandbox.run_python("x"))
        await timed("bash true", sandbox.bash("true"))
        await timed("reset", sandbox.reset())
        await timed("checkpoint", sandbox.checkpoint())
        await timed("write_file 1 KB", sandbox.write_file("a", b"x" * 1024))
        await timed("read_file 1 KB", sandbox.read_file("a"))
        await timed("close", sandbox.close())
    return samples


if __name__ == "__main__":
    main()
