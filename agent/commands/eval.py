"""Run a suite of verifiable tasks with the real tools; success with its 95% interval, by kind, and what it cost."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Any

from v32.agent.commands import options

if TYPE_CHECKING:
    from v32.agent.evals.report import Outcome, Report
    from v32.model_runtime.chat import ChatModel
    from v32.model_runtime.generators.generator import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", nargs="?", default="tiny", help="tiny (default), or reasoning: without tools")
    parser.add_argument("--json", action="store_true", help="one JSON object a line; the last is the report")
    parser.add_argument("--limit", type=int, metavar="N", help="number of tasks")
    parser.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="tasks at a time (default 16)")
    options.add_sampling_options(parser)
    options.add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from v32.agent.evals.suite import SUITES

    if arguments.suite not in SUITES:
        raise options.UsageError(f"unknown suite {arguments.suite!r}; choose {', '.join(SUITES)}")
    for name in ("limit", "concurrency"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise options.UsageError(f"--{name} is {value}; it must be 1 or more")
    if arguments.greedy:
        arguments.temperature = 0.0
    report = asyncio.run(_evaluate(arguments))
    print(json.dumps(report.to_record(), ensure_ascii=False) if arguments.json else _as_text(report.to_record()))
    return 0


async def _evaluate(arguments: argparse.Namespace) -> Report:
    params = options.sampling_params(arguments)
    model = options.load(arguments)
    try:
        return await _run_suite(arguments, model, params or model.sampling)
    finally:
        await model.aclose()


async def _run_suite(arguments: argparse.Namespace, model: ChatModel, params: SamplingParams) -> Report:
    from v32.agent.evals.suite import DEFAULT_SIZE, run_suite

    def show(outcome: Outcome) -> None:
        if arguments.json:
            print(json.dumps(outcome.to_record(), ensure_ascii=False), flush=True)
        else:
            mark = "pass" if outcome.is_success else "FAIL"
            print(f"{mark}  {outcome.kind:12}  {outcome.seconds:6.1f} s  {outcome.questions[0]}", flush=True)

    return await run_suite(
        model,
        arguments.suite,
        seed=arguments.seed,
        n=arguments.limit or DEFAULT_SIZE,
        params=params,
        concurrency=arguments.concurrency,
        on_outcome=show,
    )


def _as_text(record: dict[str, Any]) -> str:
    low, high = record["ci95"]
    kinds = [f"  {kind:12}  {entry['success']:6.1%} of {entry['n']}" for kind, entry in record["by_kind"].items()]
    head = f"{record['suite']}: {record['success']:.1%} of {record['n']} (95% interval {low:.1%} to {high:.1%})"
    cost = (
        f"{record['tool_calls']} tool calls, {record['tokens']:,} tokens produced, "
        f"{record['seconds']:.1f} s, seed {record['seed']}"
    )
    return "\n".join([head, *kinds, cost])
