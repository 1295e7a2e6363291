"""A small invented world: facts of the form "The capital of Zubrovia is Kelmar.", one document each."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from v32.agent.tasks.names import Split, name, number
from v32.agent.tasks.task import Document

Kind = Literal["place", "person", "number", "year"]


@dataclass(frozen=True, slots=True)
class Relation:
    """`label of subject is object`; `question` asks for it in other words, `{s}` being the subject."""

    label: str
    subject: Kind
    object: Kind
    question: str


RELATIONS = (
    Relation("capital", "place", "place", "Which city is the capital of {s}?"),
    Relation("largest city", "place", "place", "Which city is the largest of {s}?"),
    Relation("main river", "place", "place", "Which river is the main one of {s}?"),
    Relation("mayor", "place", "person", "Who is the mayor of {s}?"),
    Relation("president", "place", "person", "Who is the president of {s}?"),
    Relation("founder", "place", "person", "Who founded {s}?"),
    Relation("currency", "place", "place", "Which money is used in {s}?"),
    Relation("population", "place", "number", "How many people live in {s}?"),
    Relation("area", "place", "number", "How large is {s}?"),
    Relation("founding year", "place", "year", "When was {s} founded?"),
    Relation("postal code", "place", "number", "Which postal code does {s} have?"),
    Relation("highest mountain", "place", "place", "Which mountain is the highest of {s}?"),
    Relation("birthplace", "person", "place", "Where was {s} born?"),
    Relation("employer", "person", "place", "Who employs {s}?"),
    Relation("age", "person", "number", "How old is {s}?"),
    Relation("teacher", "person", "person", "Who taught {s}?"),
    Relation("birth year", "person", "year", "When was {s} born?"),
    Relation("height", "person", "number", "How tall is {s}?"),
    Relation("salary", "person", "number", "How much does {s} earn?"),
    Relation("phone number", "person", "number", "Which phone number does {s} have?"),
)
NUMBER_DIGITS = (2, 3, 3, 4, 4, 5, 5, 6, 7)


@dataclass(frozen=True, slots=True)
class Fact:
    relation: Relation
    subject: str
    object: str

    @property
    def sentence(self) -> str:
        return f"The {self.relation.label} of {self.subject} is {self.object}."


class World:
    """Facts added one by one; no two about the same relation and subject."""

    def __init__(self, random: Random, split: Split) -> None:
        self.random, self.split = random, split
        self.facts: list[Fact] = []

    def entity(self, kind: Kind) -> str:
        """A new name, number or year that no fact mentions yet."""
        used = {fact.subject for fact in self.facts} | {fact.object for fact in self.facts}
        while True:
            value = self._draw(kind)
            if value not in used:
                return value

    def add(self, relation: Relation, subject: str, value: str | None = None) -> Fact:
        fact = Fact(relation, subject, value or self.entity(relation.object))
        self.facts.append(fact)
        return fact

    def add_distractors(self, count: int, subjects: list[tuple[str, Kind]], avoid: set[str]) -> None:
        """Facts that look alike: other relations of the same subjects, other subjects with the same relations.

        `avoid` holds `label|subject` pairs that must stay unknown.
        """
        for _ in range(count):
            subject, kind = self.random.choice(subjects)
            if self.random.random() < 0.5:
                relation = self.relation(kind)
            else:
                subject, relation = self.entity(kind), self._used_relation(kind)
            taken = {f"{fact.relation.label}|{fact.subject}" for fact in self.facts} | avoid
            if f"{relation.label}|{subject}" not in taken:
                self.add(relation, subject)

    def relation(self, subject: Kind, objects: tuple[Kind, ...] = ("place", "person", "number", "year")) -> Relation:
        return self.random.choice([r for r in RELATIONS if r.subject == subject and r.object in objects])

    def documents(self) -> tuple[Document, ...]:
        """One document a fact, in random order with random ids."""
        facts = self.random.sample(self.facts, len(self.facts))
        ids = self.random.sample(range(1, 10 ** self.random.choice((2, 3))), len(facts))
        return tuple(Document(str(id_), fact.sentence) for id_, fact in zip(ids, facts))

    def _used_relation(self, kind: Kind) -> Relation:
        used = [fact.relation for fact in self.facts if fact.relation.subject == kind]
        return self.random.choice(used) if used else self.relation(kind)

    def _draw(self, kind: Kind) -> str:
        if kind == "number":
            return str(number(self.random, self.split, self.random.choice(NUMBER_DIGITS)))
        if kind == "year":
            return str(self.random.randint(1000, 2029))
        first = name(self.random, self.split)
        if kind == "person" and self.random.random() < 0.25:
            return f"{first} {name(self.random, self.split)}"
        return first
