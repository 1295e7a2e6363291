"""An endless, addressable stream of training batches: batch number n is a pure function of (seed, rank, n).

Nothing of the stream has to be saved to resume it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from v32.agent.tasks.kinds import FIRST_LESSONS, RECORD_KINDS, TaskKind, chat, kinds_for, lookup, own_tool
from v32.agent.tasks.names import Split
from v32.agent.tasks.slips import perhaps_slipping
from v32.agent.tasks.task import Task, Toolset
from v32.agent.tasks.toolbox import MAX_HITS, record_tool
from v32.agent.tasks.toolsets import INSTRUCTIONS, builtin_toolset, choice_toolset, random_toolset, record_toolset
from v32.agent.training.demonstrations import Demonstration, demonstrate, preamble, tools_listed
from v32.agent.training.offer import builtin_specs, spec_of
from v32.model_runtime.encoding.tokenizer import ChatTokenizer
from v32.model_runtime.messages import ToolSpec

IGNORED = -100
POOL = 2
"""Batches drawn at a time; cutting the pool by length keeps padding low."""
WEIGHTS = {
    "chat": 1.5,
    "own_tool": 2.0,
    "error_retry": 3.0,
    "not_found": 2.0,
    "arithmetic": 1.5,
    "compare": 4.0,
    "two_hop": 1.5,
    "two_calls": 5.0,
    "follow_up": 5.0,
}
"""How often a kind is drawn; 1 where nothing is said."""
OWN_TOOLS_LENGTH = 520
"""The bound of a dialogue that has its tools in front, these included."""
TOOLLESS_SHARE = 0.1
CHOICE_BATCHES = 3
"""A step."""
SEARCH_DEPTHS = (3, 3, 5)
"""Search results per call, one choice a batch."""


class PackedBatch(NamedTuple):
    """Dialogues [B, T] that continue one prefix [P]; `labels[b, t]` is the token after t where the model writes it."""

    prefix_ids: Tensor  # int64 [P]
    input_ids: Tensor  # int64 [B, T]
    labels: Tensor  # int64 [B, T], IGNORED elsewhere
    kinds: list[str]

    @property
    def token_ids(self) -> Tensor:
        """int64 [P + B * T]: the prefix, then the dialogues one after another."""
        return torch.cat((self.prefix_ids, self.input_ids.flatten()))

    @property
    def positions(self) -> Tensor:
        """int64 [P + B * T]: every dialogue goes on where the prefix ends."""
        prefix, (count, length) = len(self.prefix_ids), self.input_ids.shape
        return torch.cat((torch.arange(prefix), torch.arange(prefix, prefix + length).repeat(count)))

    @property
    def num_written(self) -> int:
        return int((self.labels != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        return self.prefix_ids.numel() + self.input_ids.numel()


@dataclass(frozen=True)
class Batches:
    """`tokens` dialogue positions a batch; `max_length` bounds a dialogue without its prefix."""

    tokenizer: ChatTokenizer
    seed: int
    rank: int = 0
    split: Split = "train"
    tokens: int = 2048
    max_length: int = 560
    toolless_kinds: Sequence[TaskKind] = ()
    """Only these, and no tools preamble, where any are given."""

    def step(self, number: int, *, first_lessons: bool = False) -> list[PackedBatch]:
        """What one step of training averages over: built-in tools in one batch, record tools in small ones, because
        what those teach is to read what is offered: behind the preamble, other tools in front of each dialogue, and
        the choice among several."""
        random = self._random("step", number)
        if self.toolless_kinds:
            return [self._packed(random, Toolset(()), self.toolless_kinds, [self.tokenizer.bos_id], MAX_HITS, 1)]
        if first_lessons:
            tools = Toolset(("search", "python"))
            return [self._packed(random, tools, FIRST_LESSONS, [self.tokenizer.bos_id], 3, 2)]
        shared = [self._offering(random, toolset) for toolset in (builtin_toolset(random), record_toolset(random))]
        choices = [self._choices(random) for _ in range(CHOICE_BATCHES)]
        return [*shared, self._each_with_own_tools(random), *choices]

    def batch(self, number: int) -> PackedBatch:
        """One batch of any kind, for evaluation."""
        if self.toolless_kinds:
            return self.step(number)[0]
        random = self._random("batch", number)
        return self._offering(random, random_toolset(random))

    def _random(self, *parts: object) -> Random:
        return Random(repr((self.split, self.seed, self.rank, *parts)))

    def _offering(self, random: Random, toolset: Toolset) -> PackedBatch:
        max_hits = random.choice(SEARCH_DEPTHS)
        prefix = preamble(specs_of(toolset, max_hits), self.tokenizer, random.choice(INSTRUCTIONS))
        return self._packed(random, toolset, kinds_for(toolset), prefix, max_hits, 5 if toolset.records else 1)

    def _packed(
        self,
        random: Random,
        toolset: Toolset,
        kinds: Sequence[TaskKind],
        prefix: list[int],
        max_hits: int,
        divisor: int,
    ) -> PackedBatch:
        def draw() -> tuple[Task, Demonstration]:
            task = perhaps_slipping(random, _any_of(kinds, random)(random, self.split, toolset))
            return task, demonstrate(task, self.tokenizer, max_hits)

        return self._pooled(random, draw, prefix, self.tokens // divisor, self.max_length)

    def _each_with_own_tools(self, random: Random) -> PackedBatch:
        """Dialogues that each begin with a list of tools, without the explanation of calls that is always the same:
        many toolsets for the price of few preambles. A few are offered no tool."""

        def draw() -> tuple[Task, Demonstration]:
            if random.random() < TOOLLESS_SHARE:
                task = chat(random, self.split, Toolset(()))
                return task, demonstrate(task, self.tokenizer)
            toolset, max_hits = record_toolset(random), random.choice(SEARCH_DEPTHS)
            task = perhaps_slipping(random, random.choice(RECORD_KINDS)(random, self.split, toolset))
            listed = tools_listed(specs_of(toolset, max_hits), self.tokenizer)
            return task, demonstrate(task, self.tokenizer, max_hits).after(listed)

        return self._pooled(random, draw, [self.tokenizer.bos_id], self.tokens // 2, OWN_TOOLS_LENGTH)

    def _choices(self, random: Random) -> PackedBatch:
        """Many questions about one list of several tools, each only as far as the first call."""
        toolset = choice_toolset(random)
        kinds = (own_tool, own_tool, lookup) if "search" in toolset.builtin else (own_tool,)

        def draw() -> tuple[Task, Demonstration]:
            task = random.choice(kinds)(random, self.split, toolset)
            return task, demonstrate(task, self.tokenizer).first_answer(self.tokenizer.eos_id)

        prefix = [self.tokenizer.bos_id, *tools_listed(specs_of(toolset), self.tokenizer)]
        return self._pooled(random, draw, prefix, self.tokens // 4, self.max_length)

    def _pooled(
        self,
        random: Random,
        draw: Callable[[], tuple[Task, Demonstration]],
        prefix: list[int],
        tokens: int,
        max_length: int,
    ) -> PackedBatch:
        """As many of the drawn dialogues as fit into `tokens`, of about one length."""
        pool: list[tuple[Task, Demonstration]] = []
        size = 0
        while size < POOL * tokens:
            pair = draw()
            if _length(pair) <= max_length:
                pool.append(pair)
                size += _length(pair)
        pool.sort(key=_length)
        return _pack(_neighbours(random, pool, tokens), prefix, self.tokenizer.eos_id)


def _any_of(kinds: Sequence[TaskKind], random: Random) -> TaskKind:
    return random.choices(kinds, [WEIGHTS.get(kind.__name__, 1.0) for kind in kinds])[0]


def _neighbours(
    random: Random, by_length: list[tuple[Task, Demonstration]], tokens: int
) -> list[tuple[Task, Demonstration]]:
    """As many as fit of a random one's neighbours in length: longer ones first, so that the longest are seen."""
    start = end = random.randrange(len(by_length))
    while end < len(by_length) and (end == start or (end + 1 - start) * _length(by_length[end]) <= tokens):
        end += 1
    while start > 0 and (end + 1 - start) * _length(by_length[end - 1]) <= tokens:
        start -= 1
    return by_length[start:end]


def _length(pair: tuple[Task, Demonstration]) -> int:
    return len(pair[1].token_ids)


def specs_of(toolset: Toolset, max_hits: int = MAX_HITS) -> list[ToolSpec]:
    return [*builtin_specs(toolset.builtin, max_hits), *(spec_of(record_tool(record)) for record in toolset.records)]


def _pack(chosen: list[tuple[Task, Demonstration]], prefix: list[int], pad: int) -> PackedBatch:
    length = max(len(demo.token_ids) for _, demo in chosen)
    input_ids = torch.full((len(chosen), length), pad)
    labels = torch.full((len(chosen), length), IGNORED)
    for row, (_, demo) in enumerate(chosen):
        ids = torch.tensor(demo.token_ids)
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids) - 1] = torch.where(torch.tensor(demo.is_written[1:]), ids[1:], IGNORED)
    return PackedBatch(torch.tensor(prefix), input_ids, labels, [task.kind for task, _ in chosen])
