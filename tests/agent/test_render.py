"""What people see of a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from v32.agent import Agent
from v32.agent.render import TextView
from v32.tools import ToolError, tool


@tool(in_worker=False)
def look(word: str) -> str:
    """Look up a word."""
    if word == "bad":
        raise ToolError("no such word")
    return "line one\nline \x1b]0;owned\x07two"


def shown(scripted: Callable[..., Any], *completions: str) -> str:
    file = io.StringIO()

    async def follow() -> None:
        view = TextView(file)
        async for item in Agent(scripted(*completions), tools=[look]).stream("Go."):
            view.show(item)

    anyio.run(follow)
    return file.getvalue()


def test_a_run_reads_from_top_to_bottom(scripted: Callable[..., Any], say: Any) -> None:
    text = shown(scripted, say.calls(("look", {"word": "x"}), ("look", {"word": "bad"})), say.answer("It is [bold]x."))
    lines = text.splitlines()
    assert lines[0] == "I look it up."
    assert "→ look(word='x')" in lines
    assert "← look: Error: no such word" in lines
    assert "  line one" in lines
    assert lines[-2] == "It is [bold]x."
    assert lines[-1].startswith("2 turns, ")


def test_a_result_of_before_shows_its_answer(scripted: Callable[..., Any], say: Any, tmp_path: Path) -> None:
    file, agent = io.StringIO(), Agent(scripted(say.answer("It is x.")), journal=tmp_path / "s.jsonl")

    async def follow() -> None:
        await agent.run("Go.")
        async with agent.resume(tmp_path / "s.jsonl") as session:
            TextView(file).show(await session.run())

    anyio.run(follow)
    answer, usage = file.getvalue().splitlines()
    assert answer == "It is x."
    assert usage.startswith("1 turns, ")


def test_nothing_that_was_written_can_act_on_the_terminal(scripted: Callable[..., Any], say: Any) -> None:
    text = shown(scripted, say.calls(("look", {"word": "\x1b[2J"})), say.answer("a\x1b[31mb\x9bc\x07"))
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in text)
