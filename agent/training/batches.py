"""An endless, addressable stream of training batches: batch number n is a pure function of (seed, rank, n).

Nothing of the stream has to be saved to resume it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from v32.agent.tasks.kinds import TaskKind, chat, kinds_for
from v32.agent.tasks.names import Split
from v32.agent.tasks.task import Task, Toolset
from v32.agent.tasks.toolbox import record_tool
from v32.agent.tasks.toolsets import INSTRUCTIONS, random_toolset
from v32.agent.training.demonstrations import Demonstration, demonstrate, preamble
from v32.agent.training.offer import builtin_specs, spec_of
from v32.model_runtime.encoding.tokenizer import ChatTokenizer
from v32.model_runtime.messages import ToolSpec

IGNORED = -100
POOL = 2
"""Batches drawn at a time; cutting the pool by length keeps padding low."""
CHAT_WEIGHT = 0.4


class PackedBatch(NamedTuple):
    """Dialogues [B, T] that continue one prefix [P]; `labels[b, t]` is the token after t where the model writes it."""

    prefix_ids: Tensor  # int64 [P]
    input_ids: Tensor  # int64 [B, T]
    labels: Tensor  # int64 [B, T], IGNORED elsewhere
    kinds: list[str]

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

    def batch(self, number: int, *, bare: bool = False) -> PackedBatch:
        """`bare`: no tools preamble, and only kinds that need no schema (the first lessons)."""
        random = Random(f"{self.split}-{self.seed}-{self.rank}-{number}")
        toolset = Toolset(("search", "python")) if bare else random_toolset(random)
        specs = [] if bare else _specs(toolset)
        prefix = preamble(specs, self.tokenizer, None if bare else random.choice(INSTRUCTIONS))
        pool = sorted(self._pool(random, toolset), key=lambda pair: len(pair[1].token_ids))
        return _pack(self._cut(random, pool), prefix, self.tokenizer.eos_id)

    def _pool(self, random: Random, toolset: Toolset) -> list[tuple[Task, Demonstration]]:
        kinds = kinds_for(toolset)
        weights = [CHAT_WEIGHT if kind is chat else 1.0 for kind in kinds]
        pool: list[tuple[Task, Demonstration]] = []
        size = 0
        while size < POOL * self.tokens:
            kind: TaskKind = random.choices(kinds, weights)[0]
            task = kind(random, self.split, toolset)
            demo = demonstrate(task, self.tokenizer)
            if len(demo.token_ids) <= self.max_length:
                pool.append((task, demo))
                size += len(demo.token_ids)
        return pool

    def _cut(self, random: Random, by_length: list[tuple[Task, Demonstration]]) -> list[tuple[Task, Demonstration]]:
        """Neighbours in length, from a random place, as many as fit."""
        start = random.randrange(max(len(by_length) * (POOL - 1) // POOL, 1))
        chosen: list[tuple[Task, Demonstration]] = []
        for pair in by_length[start:]:
            if chosen and (len(chosen) + 1) * len(pair[1].token_ids) > self.tokens:
                break
            chosen.append(pair)
        return chosen


def _specs(toolset: Toolset) -> list[ToolSpec]:
    return [*builtin_specs(toolset.builtin), *(spec_of(record_tool(record)) for record in toolset.records)]


def _pack(chosen: list[tuple[Task, Demonstration]], prefix: list[int], pad: int) -> PackedBatch:
    length = max(len(demo.token_ids) for _, demo in chosen)
    input_ids = torch.full((len(chosen), length), pad)
    labels = torch.full((len(chosen), length), IGNORED)
    for row, (_, demo) in enumerate(chosen):
        ids = torch.tensor(demo.token_ids)
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids) - 1] = torch.where(torch.tensor(demo.is_written[1:]), ids[1:], IGNORED)
    return PackedBatch(torch.tensor(prefix), input_ids, labels, [task.kind for task, _ in chosen])
