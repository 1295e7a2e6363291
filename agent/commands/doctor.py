"""Say which sandboxes work on this machine, what they enforce and by what; with --attack, try to break out."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from v32.sandboxes import AttackResult, BackendReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attack", action="store_true", help="run the corpus of attacks and print a table")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """0 if a sandbox works and, with --attack, nothing has broken out."""
    return asyncio.run(_attack(arguments.json) if arguments.attack else _report(arguments.json))


async def _report(as_json: bool) -> int:
    from v32.sandboxes import report

    backends = await report()
    for backend in backends:
        print(json.dumps(asdict(backend), ensure_ascii=False) if as_json else _as_text(backend))
    return 0 if any(backend.works for backend in backends) else 1


def _as_text(backend: BackendReport) -> str:
    if not backend.works:
        return f"{backend.backend}: does not work: {backend.problem}"
    enforced = [f"  {limit:10}  {mechanism}" for limit, mechanism in asdict(backend.enforced).items()]
    return "\n".join([f"{backend.backend}: works, opens in {backend.open_seconds * 1000:.0f} ms", *enforced])


async def _attack(as_json: bool) -> int:
    from v32.sandboxes import run_attacks
    from v32.tools.gate import for_model

    def show(result: AttackResult) -> None:
        row = f"{result.outcome:10}  {result.category:14}  {result.id:28}  {result.evidence}"
        print(json.dumps(asdict(result), ensure_ascii=False) if as_json else row.rstrip(), flush=True)

    results = await run_attacks(render=for_model, special_tokens=_special_tokens(), on_result=show)
    outcomes = Counter(result.outcome for result in results)
    if not as_json:
        print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    return 1 if outcomes["succeeded"] else 0


def _special_tokens() -> Callable[[str], list[str]]:
    """The structural tokens that a text becomes as a tool result, in the encoding of the embedded checkpoint."""
    from v32.model_runtime.checkpoint.source import embedded_checkpoint
    from v32.model_runtime.encoding import ChatTokenizer
    from v32.model_runtime.encoding.dialect import Segment

    tokenizer = ChatTokenizer.from_dir(embedded_checkpoint())

    def special_tokens(text: str) -> list[str]:
        ids = tokenizer.encode_segments([Segment(text)])
        return [tokenizer.decode([token_id]) for token_id in ids if tokenizer.is_structural(token_id)]

    return special_tokens
