"""kill -9 at every point of the journal: the run goes on, nothing recorded is lost, no effect happens twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from v32.agent import Agent, Journal, RunResult, read_journal
from v32.agent.records import to_line
from v32.tools import Tool, tool

How = Literal["before", "torn", "after"]
NUM_RECORDS = 9
"""user_said, completed, 2 × tool_started, 2 × tool_finished, tools_returned, completed, stopped."""


class DyingJournal(Journal):
    """Kills its process with SIGKILL at record `at` (from 0): before it, in the middle of its line, or after it."""

    def __init__(self, path: Path, at: int, how: How) -> None:
        super().__init__(path)
        self.at, self.how = at, how

    def append(self, record: Mapping[str, Any]) -> None:
        if self._count < self.at:
            return super().append(record)
        if self.how == "torn":
            with self.path.open("ab") as file:
                file.write(to_line(record).encode()[:20])
        elif self.how == "after":
            super().append(record)
        os.kill(os.getpid(), signal.SIGKILL)
        return None


def tools(effects: Path) -> list[Tool]:
    """Two tools that leave a mark each time they run; only the second may be run twice."""

    def mark(name: str) -> None:
        with effects.open("a") as file:
            file.write(f"{name}\n")

    @tool(in_worker=False)
    def pay() -> str:
        """Pay the bill."""
        mark("pay")
        return "paid"

    @tool(in_worker=False, safe_to_retry=True)
    def look() -> str:
        """Look at the balance."""
        mark("look")
        return "balance 5"

    return [pay, look]


@pytest.fixture
def completions(say: Any) -> list[str]:
    return [say.calls(("pay", {}), ("look", {})), say.answer("All done.")]


@pytest.mark.parametrize("how", ["before", "torn", "after"])
@pytest.mark.parametrize("at", range(NUM_RECORDS))
def test_a_killed_run_goes_on(
    at: int, how: How, scripted: Callable[..., Any], completions: list[str], tmp_path: Path
) -> None:
    path, effects = tmp_path / "s.jsonl", tmp_path / "effects"
    effects.touch()
    run_and_die(Agent(scripted(*completions), tools=tools(effects)), DyingJournal(path, at, how))
    survived = read_journal(path).records
    assert len(survived) == at + (how == "after")

    num_completed = sum(record["type"] == "completed" for record in survived)
    agent = Agent(scripted(*completions[num_completed:]), tools=tools(effects))
    result = asyncio.run(go_on(agent, path, "Pay, then look."))

    assert result.output == "All done."
    assert [message["role"] for message in result.messages] == [
        "system", "user", "assistant", "tool", "tool", "assistant",
    ]  # fmt: skip
    assert read_journal(path).records[: len(survived)] == survived
    pay, look = result.steps[0].results
    assert look.text == "balance 5"
    ran = Counter(effects.read_text().split())
    assert ran["pay"] <= 1
    if pay.outcome == "ok":
        assert (pay.text, ran["pay"]) == ("paid", 1)
    else:
        assert pay.outcome == "interrupted"
        assert pay.text.startswith("Error: interrupted before a result was recorded")
        assert "tool_started" in {r["type"] for r in survived if r.get("name") == "pay"}


def run_and_die(agent: Agent, journal: Journal) -> None:
    """Run in a child process until it kills itself."""

    async def run() -> None:
        async with agent.session(journal) as session:
            await session.run("Pay, then look.")

    child = os.fork()
    if child == 0:
        try:
            asyncio.run(run())
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


async def go_on(agent: Agent, path: Path, prompt: str) -> RunResult:
    async with agent.resume(path) as session:
        return await session.run(None if session.history else prompt)
