"""A task: documents to search, tools to offer, user messages, and a demonstration that answers each.

The demonstration is what a perfect agent would write; its last text is the expected answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """One page of the world: `[id] text` in search results."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class RecordTool:
    """A tool of the task's own: a table from names to values, `name(parameter)`.

    An unknown name is an error that suggests the closest known one.
    """

    name: str
    description: str
    parameter: str
    parameter_description: str
    records: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Toolset:
    """What is offered: built-in tools by name, and record tools that tables are filled into."""

    builtin: tuple[str, ...]
    records: tuple[RecordTool, ...] = ()


@dataclass(frozen=True, slots=True)
class DemonstratedCall:
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One completion that calls tools: the reasoning, then the calls of one block.

    A slip is a call that went wrong and that the next step mends: shown, never taught.
    """

    reasoning: str
    calls: tuple[DemonstratedCall, ...]
    is_slip: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One user message, the steps towards its answer, and the answer."""

    question: str
    steps: tuple[Step, ...]
    reasoning: str
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    """`kind` names the skill; `builtin_tools` of `search`, `python`, …; `records` are tools of the task's own."""

    kind: str
    turns: tuple[Turn, ...]
    documents: tuple[Document, ...] = ()
    builtin_tools: tuple[str, ...] = ()
    records: tuple[RecordTool, ...] = field(default=())

    @property
    def answers(self) -> tuple[str, ...]:
        """The expected output for each user message."""
        return tuple(turn.answer for turn in self.turns)
