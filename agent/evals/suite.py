"""Runs a suite: each task gets an agent with the task's tools and a session; its answers are compared exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random, SystemRandom

import anyio

from v32.agent.agent import Agent
from v32.agent.evals.report import Outcome, Report
from v32.agent.limits import Limits
from v32.agent.tasks.kinds import KINDS, RECORD_KINDS, TaskKind
from v32.agent.tasks.reasoning import REASONING_KINDS
from v32.agent.tasks.task import Task, Toolset
from v32.agent.tasks.toolbox import Toolbox
from v32.agent.tasks.toolsets import record_tools
from v32.model_runtime.chat import ChatModel
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.messages import Usage
from v32.tools.code import CodeSession, python_tool

SUITES: dict[str, tuple[TaskKind, ...]] = {"tiny": KINDS, "reasoning": REASONING_KINDS}
"""What the tiny checkpoint is for, and its Speciale twin, which is offered no tools."""
DEFAULT_SIZE = 110
LIMITS = Limits(turns=8)
"""More completions than any task needs; a model that goes round in circles is stopped."""


def suite_tasks(name: str, seed: int, n: int) -> list[Task]:
    """`n` held-out tasks of suite `name`, every kind in turn."""
    random, kinds = Random(seed), SUITES[name]
    return [_task(random, kinds[i % len(kinds)]) for i in range(n)]


def fresh_seed() -> int:
    return SystemRandom().randrange(2**31)


async def run_suite(
    model: ChatModel,
    name: str = "tiny",
    *,
    seed: int | None = None,
    n: int = DEFAULT_SIZE,
    params: SamplingParams = SamplingParams(),  # noqa: B008 (frozen)
    concurrency: int = 16,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Run suite `name`; a seed gives the same tasks and the same sampling. Outcomes are announced as they come."""
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; choose {', '.join(SUITES)}")
    seed = fresh_seed() if seed is None else seed
    started = time.monotonic()
    outcomes = await run_tasks(model, suite_tasks(name, seed, n), seed, params, concurrency, on_outcome)
    return Report(name, seed, outcomes, time.monotonic() - started)


async def run_tasks(
    model: ChatModel,
    tasks: Sequence[Task],
    seed: int,
    params: SamplingParams,
    concurrency: int,
    on_outcome: Callable[[Outcome], None],
) -> list[Outcome]:
    """The outcome of each task, in order; `concurrency` of them run at a time. What the machine does wrong ends all."""
    outcomes: dict[int, Outcome] = {}
    places = anyio.CapacityLimiter(concurrency)

    async def run(number: int, task: Task) -> None:
        async with places:
            outcomes[number] = await run_task(model, task, replace(params, seed=seed + number))
            on_outcome(outcomes[number])

    try:
        async with anyio.create_task_group() as group:
            for number, task in enumerate(tasks):
                group.start_soon(run, number, task)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others say the same of other tasks
    return [outcomes[number] for number in range(len(tasks))]


async def run_task(model: ChatModel, task: Task, params: SamplingParams) -> Outcome:
    """Ask the task's questions in one session; stop at the first run that ends without an answer."""
    started = time.monotonic()
    code = CodeSession()
    agent = Agent(model, tools=Toolbox(task).tools(python_tool(code)), limits=LIMITS, params=params)
    outputs: list[str] = []
    usage, stop_reason = Usage(), ""
    try:
        async with agent.session() as session:
            for turn in task.turns:
                result = await session.run(turn.question)
                outputs.append(result.output)
                usage, stop_reason = usage + result.usage, str(result.stop_reason)
                if result.output != turn.answer:
                    break
    finally:
        await agent.aclose()
        await code.aclose()
    questions = tuple(turn.question for turn in task.turns)
    return Outcome(task.kind, questions, task.answers, tuple(outputs), stop_reason, usage, time.monotonic() - started)


def _task(random: Random, kind: TaskKind) -> Task:
    builtin = tuple(random.sample(("search", "python"), 2))
    if kind in REASONING_KINDS:
        return kind(random, "held-out", Toolset(()))
    if kind in RECORD_KINDS:
        return kind(random, "held-out", Toolset((), record_tools(random, random.choice((1, 2, 3)))))
    return kind(random, "held-out", Toolset(builtin))
