"""What a conversation with tools costs: prefilled against new tokens, and the first token after a user message.

`python benchmarks/session.py [--model DIR] [--turns 20] [--json]`

Words are rehearsed (a grammar allows one token at a time), so that lengths are known and turns comparable; agent,
transcript, engine and cache are the real ones, and every token is decoded by the model. Printed after a check that
settling ahead changed no token:

    new          tokens that were never run: user messages and results of calls with their markers, ends of calls
    template     kept of the last turn, at new positions because its reasoning was dropped: computed again by necessity
    twice        anything else that was prefilled; nothing should be
    cost         seconds of all prefill and decoding against those of new and produced tokens alone
    first token  seconds from a user message to its first token, by the length of the turn before, without and with
                 settling ahead; medians
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncGenerator, Hashable, Iterator, Sequence
from typing import Any

import torch

from v32.agent import Agent
from v32.agent.session import Session
from v32.model_runtime import ChatModel, SamplingParams, load_model
from v32.model_runtime.encoding import V32, ChatTokenizer
from v32.model_runtime.generators import LocalGenerator
from v32.model_runtime.generators.generator import Finished, Token, TokenConstraint
from v32.model_runtime.messages import Usage
from v32.tools import tool

REASONING, MESSAGE, ANSWER, RESULT = 25, 8, 15, 20
"""Words of each part of a turn of the long session."""
LAST_TURNS = (100, 400, 1600)
"""Words of the results in the turn before the message whose first token is awaited."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder in Hugging Face layout (default: the embedded checkpoint)")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="of the first-token measurement")
    parser.add_argument("--json", action="store_true", help="one JSON object a measurement")
    options = parser.parse_args()
    for row in asyncio.run(measure(options)):
        print(json.dumps(row) if options.json else "  ".join(f"{key} {_short(value)}" for key, value in row.items()))


async def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    said = []
    for settles in (False, True):
        async with _model(options.model, settles) as model:
            said.append(await free_session(model))
    assert said[0] == said[1], "settling ahead changed what was said"
    async with _model(options.model, False) as model:
        rows = [await long_session(model, options.turns)]
    for words in LAST_TURNS:
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.rounds):
            for settles in (False, True):
                async with _model(options.model, settles) as model:
                    length, history, latency = await first_token(model, words)
                    seconds[settles].append(latency)
        without, ahead = (statistics.median(seconds[settles]) for settles in (False, True))
        measured = {"history": history, "last_turn": length, "without_s": without, "with_s": ahead}
        rows.append({"what": "first token", **measured, "sooner": without / ahead})
    return rows


async def free_session(model: ChatModel) -> list[tuple[int, ...]]:
    """What the model itself says over four turns, greedily."""
    agent = Agent(model, tools=[look_up], params=SamplingParams(temperature=0, max_new_tokens=24))
    said = []
    async with agent.session() as session:
        for turn in range(4):
            result = await session.run(f"Question {turn}: what is the population of Todix?")
            said += [step.completion.token_ids for step in result.steps]
            await _settle(session)
    return said


async def long_session(model: ChatModel, turns: int) -> dict[str, Any]:
    """Turns of reasoning, a call, its result, an answer; every token decoded."""
    assert isinstance(model.generator, Rehearsed)
    new = template = 0
    usage = Usage()
    async with _agent(model).session() as session:
        head = len(session.transcript)
        for turn in range(turns):
            before, settled = session.transcript.ids, session.transcript.settled_ids()
            template += len(settled) - _common(before, settled)
            model.generator.rehearse(*_completions(model.tokenizer, turn, RESULT))
            result = await session.run(f"{turn} " + "please " * MESSAGE)
            usage += result.usage
            produced = sum(len(step.completion.token_ids) for step in result.steps)
            unrun = len(result.steps) - 1  # the last token of a call is first run with its results
            new += len(session.transcript) - len(settled) - produced + unrun
        length = len(session.transcript)
    prefilled, seconds = usage.prefilled_tokens - head, usage.seconds
    needed = seconds["prefill"] * (head + new) / usage.prefilled_tokens + seconds["decode"]
    return {
        "what": f"{turns} turns",
        "context": length,
        "produced": usage.completion_tokens,
        "prompts": usage.prompt_tokens,
        "head": head,
        "prefilled": prefilled,
        "new": new,
        "template": template,
        "twice": prefilled - new - template,
        "prefill_s": seconds["prefill"],
        "decode_s": seconds["decode"],
        "cost": (seconds["prefill"] + seconds["decode"]) / needed,
    }


async def first_token(model: ChatModel, words: int) -> tuple[int, int, float]:
    """Tokens kept of the last turn, tokens of the history, seconds to the first token of the next answer."""
    assert isinstance(model.generator, Rehearsed)
    model.generator.decodes = False  # only what the cache holds afterwards counts
    async with _agent(model).session() as session:
        for turn, size in enumerate((RESULT, words)):
            start = len(session.transcript)
            model.generator.rehearse(*_completions(model.tokenizer, turn, size))
            await session.run(f"{turn} " + "please " * MESSAGE)
        settled = len(session.transcript.settled_ids())
        await _settle(session)
        model.generator.rehearse(*_completions(model.tokenizer, 9, RESULT)[1:])
        started = time.perf_counter()
        await session.run("And now?")
        assert model.generator.first_token_at is not None
        return settled - start, settled, model.generator.first_token_at - started


class Rehearsed:
    """A `TokenGenerator` that has the engine say what was rehearsed: each token is computed, one is allowed."""

    def __init__(self, local: LocalGenerator) -> None:
        self.local = local
        self.max_context = local.max_context
        self.decodes = True
        self.first_token_at: float | None = None
        self._completions: list[list[int]] = []

    def rehearse(self, *completions: list[int]) -> None:
        self._completions = list(completions)

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token | Finished, None]:
        self.first_token_at = None
        script = Script(self._completions.pop(0), self.decodes) if self._completions else constraint
        async for event in self.local.generate(prompt_ids, params, script):
            self.first_token_at = self.first_token_at or time.perf_counter()
            yield event

    def prefill_ahead(self, owner: Hashable, token_ids: Sequence[int]) -> None:
        self.local.prefill_ahead(owner, token_ids)

    async def aclose(self) -> None:
        await self.local.aclose()

    def describe(self) -> dict[str, Any]:
        return self.local.describe()


class Script:
    """A grammar with one sentence. Unless it `decodes`, all but the first token are forced at once."""

    def __init__(self, token_ids: list[int], decodes: bool) -> None:
        self.token_ids, self.decodes, self.position = token_ids, decodes, 0

    def start(self) -> Script:
        return Script(self.token_ids, self.decodes)

    def fill_bitmask(self, bitmask: torch.Tensor) -> bool:
        token_id = self.token_ids[self.position]
        bitmask.zero_()
        bit = token_id % 32
        bitmask[token_id // 32] = 1 << bit if bit < 31 else -(1 << 31)
        return True

    def accept(self, token_id: int) -> bool:
        self.position += 1
        return self.token_ids[self.position - 1] == token_id

    def forced_tokens(self) -> list[int]:
        return [] if self.decodes or self.position == 0 else self.token_ids[self.position :]

    def rollback(self, num_tokens: int) -> None:
        self.position -= num_tokens


@tool
def look_up(name: str) -> str:
    """Look something up."""
    turn, words = name.split()
    return " ".join(_words(int(turn), int(words)))


def _completions(tokenizer: ChatTokenizer, turn: int, words: int) -> list[list[int]]:
    """A call for a result of so many words, then an answer."""
    call = (
        f"{V32.invoke_open('look_up')}{V32.parameter_open('name', is_string=True)}{turn} {words}"
        f"{V32.parameter_close}\n{V32.invoke_close}"
    )
    think = " ".join(_words(turn + 1, REASONING))
    texts = [(think, f"\n\n{V32.block_open}{call}\n{V32.block_close}"), (think, " ".join(_words(turn + 2, ANSWER)))]
    ends = [tokenizer.eos_id]
    return [
        [*tokenizer.encode_text(before), tokenizer.think_close_id, *_with_markers(tokenizer, after), *ends]
        for before, after in texts
    ]


def _with_markers(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """The marker of calls is one token, wherever it stands."""
    ids: list[int] = []
    for index, piece in enumerate(text.split(V32.dsml)):
        ids += [*(tokenizer.encode_control(V32.dsml) if index else ()), *tokenizer.encode_text(piece)]
    return ids


def _words(seed: int, count: int) -> Iterator[str]:
    names = ("the", "town", "has", "a", "lake", "and", "many", "people", "who", "live", "there")
    return (names[(seed * 7 + index * (seed % 5 + 1)) % len(names)] for index in range(count))


def _agent(model: ChatModel) -> Agent:
    return Agent(model, tools=[look_up], params=SamplingParams(temperature=0), context="none")


class _model:
    """The chat model over a rehearsed generator, closed at the end."""

    def __init__(self, source: str | None, settles: bool) -> None:
        self.chat = load_model(source, settle_ahead=settles)
        assert isinstance(self.chat.generator, LocalGenerator)
        self.chat.generator = Rehearsed(self.chat.generator)

    async def __aenter__(self) -> ChatModel:
        return self.chat

    async def __aexit__(self, *_: object) -> None:
        await self.chat.aclose()


async def _settle(session: Session) -> None:
    """The user is silent until the idle work is done."""
    generator = session.agent.model.generator
    assert isinstance(generator, Rehearsed)
    await asyncio.sleep(0.05)
    while generator.local._worker.engine.has_work_ahead:
        await asyncio.sleep(0.01)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
