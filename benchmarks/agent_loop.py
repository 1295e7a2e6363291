"""How fast the embedded checkpoint answers as an agent: tokens a second with grammar, parser and tools; a cold start.

`python benchmarks/agent_loop.py [--rounds 5] [--json]`

Medians over rounds of one question a city, each in a session of its own; every answer has to be right, or no figure is
printed. With the tool in a thread and in a worker process:

    decode       tokens a second from the first to the last of a completion
    run          tokens a second of whole runs: prompts, tools and their results included
    call         milliseconds of one call of the tool

and of `v32 run` with search and Python as a process of its own, seconds until its first token, until its end, and of
processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from v32.agent import Agent
from v32.model_runtime import SamplingParams, load_model
from v32.tools import FunctionTool

INHABITANTS = {"Paris": 2_102_650, "Oslo": 709_037, "Madrid": 3_332_035, "Vienna": 2_028_499, "Rome": 2_748_109}
CORPUS = Path(__file__).parents[1] / "examples/tiny_v32/corpus"
QUESTION, ANSWER = "What is the population of Todix plus 30?", "65192"


def population(city: str) -> int:
    """Number of inhabitants of a city."""
    return INHABITANTS[city]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object a measurement")
    options = parser.parse_args()
    for in_worker in (False, True):
        tool = FunctionTool(population, in_worker=in_worker, namespace={})
        rounds = asyncio.run(answer_rounds(tool, options.rounds))
        show(f"loop, tool {'in a worker' if in_worker else 'in a thread'}", rounds, options.json)
    show("v32 run, cold", [cold_start() for _ in range(options.rounds)], options.json)


async def answer_rounds(tool: FunctionTool[..., int], count: int) -> list[dict[str, float]]:
    model = load_model()
    agent = Agent(model, tools=[tool], params=SamplingParams(temperature=0))
    rounds = [await answer_all(agent) for _ in range(count + 1)]
    await agent.aclose()
    await model.aclose()
    return rounds[1:]  # the first one compiles the grammar


async def answer_all(agent: Agent) -> dict[str, float]:
    tokens, decoding, calls, started = 0, 0.0, 0.0, time.perf_counter()
    for city, inhabitants in INHABITANTS.items():
        async with agent.session() as session:
            result = await session.run(f"What is the population of {city}?")
        assert str(inhabitants) in result.output, f"{result.output!r} instead of {inhabitants}"
        tokens += result.usage.completion_tokens
        decoding += result.usage.seconds["decode"]
        calls += result.usage.seconds["tools"]
    seconds = time.perf_counter() - started
    return {"decode": tokens / decoding, "run": tokens / seconds, "call": 1000 * calls / len(INHABITANTS)}


def cold_start() -> dict[str, float]:
    before, started, first = getrusage(RUSAGE_CHILDREN), time.perf_counter(), None
    tools = ["--tools", "search,python", "--docs", str(CORPUS), "--topn", "3"]
    command = [sys.executable, "-m", "v32.agent", "run", QUESTION, *tools, "--temperature", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if first is None and event["type"].endswith("_delta"):
                first = time.perf_counter() - started
    after = getrusage(RUSAGE_CHILDREN)
    assert first is not None, f"no token came: {event}"
    assert ANSWER in event["output"], f"{event['output']!r} instead of {ANSWER}"
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"first token": first, "end": time.perf_counter() - started, "processor": cpu}


def show(what: str, rounds: list[dict[str, float]], as_json: bool) -> None:
    row = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    if as_json:
        print(json.dumps({"what": what, **row}), flush=True)
    else:
        print(f"{what:24}", *(f"{key} {value:.4g}" for key, value in row.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
