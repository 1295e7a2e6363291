"""Measure an agent: held-out tasks with one right answer each, real tools, success with its 95% interval.

$ python examples/06_evaluation.py 33
"""

import asyncio
import sys

from v32.agent.evals.suite import run_suite
from v32.model_runtime import load_model


def show(outcome):
    print("pass" if outcome.is_success else "FAIL", outcome.kind, "|", *outcome.questions)


def main(model=None, n=11, concurrency=8):
    report = asyncio.run(
        run_suite(model or load_model(), "tiny", seed=1, n=int(n), concurrency=concurrency, on_outcome=show)
    )
    record = report.to_record()
    low, high = record["ci95"]
    print(f"{record['success']:.0%} of {record['n']} tasks (95% interval {low:.0%} to {high:.0%})")
    print(f"{record['tool_calls']} calls, {record['tokens']} tokens, {record['seconds']} s")


if __name__ == "__main__":
    main(None, *sys.argv[1:])
