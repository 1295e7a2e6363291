"""Say which sandboxes work on this machine, what they enforce and by what; with --attack, try to break out."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attack", action="store_true", help="run the corpus of attacks and print a table")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """0 if a sandbox works (and, with --attack, holds)."""
    return asyncio.run(_attack(arguments.json) if arguments.attack else _report(arguments.json))


async def _report(as_json: bool) -> int:
    from v32.sandboxes.report import report

    backends = await report()
    if as_json:
        _print_json(backends)
    for backend in [] if as_json else backends:
        if backend.works:
            print(f"{backend.backend}: works, opens in {backend.open_seconds * 1000:.0f} ms")
            print(_table([(limit, mechanism) for limit, mechanism in asdict(backend.enforced).items()]))
        else:
            print(f"{backend.backend}: does not work: {backend.problem}")
    return 0 if any(backend.works for backend in backends) else 1


async def _attack(as_json: bool) -> int:
    from v32.sandboxes import run_attacks

    results = await run_attacks()
    if as_json:
        _print_json(results)
    return 0


def _print_json(rows: Iterable[Any]) -> None:
    for row in rows:
        print(json.dumps(asdict(row), ensure_ascii=False), flush=True)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
