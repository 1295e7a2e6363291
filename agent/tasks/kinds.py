"""The kinds of tasks the tiny checkpoint is trained and measured on, each with its demonstration.

A kind is a function from (random, split, toolset) to a `Task`. Entities, numbers and phrasings of the two splits are
disjoint.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from v32.agent.tasks import phrasing
from v32.agent.tasks.names import Split, misspelt, name, number, operands
from v32.agent.tasks.phrasing import phrase
from v32.agent.tasks.task import DemonstratedCall, RecordTool, Step, Task, Toolset, Turn
from v32.agent.tasks.toolsets import relation_named
from v32.agent.tasks.world import Fact, Kind, World

SUBJECT_KINDS: tuple[Kind, ...] = ("place", "place", "person")
FOLLOW_UP_SUM_SHARE = 0.35


def lookup(random: Random, split: Split, toolset: Toolset) -> Task:
    """One fact among look-alikes."""
    world = World(random, split)
    fact = _new_fact(world)
    _surround(world, [fact], random.randint(1, 7))
    turn = Turn(_ask(random, split, fact), (_search(fact),), fact.sentence, fact.sentence)
    return Task("lookup", (turn,), world.documents(), toolset.builtin, toolset.records)


def not_found(random: Random, split: Split, toolset: Toolset) -> Task:
    """The documents know the subject or the relation, not both together."""
    world = World(random, split)
    fact = _new_fact(world)
    world.facts.clear()
    avoid = {f"{fact.relation.label}|{fact.subject}"}
    world.add_distractors(random.randint(2, 6), [(fact.subject, fact.relation.subject)], avoid)
    world.add(fact.relation, world.entity(fact.relation.subject))
    what = _noun(fact)
    turn = Turn(
        _ask(random, split, fact), (_search(fact),), f"The results do not give {what}.", f"I could not find {what}."
    )
    return Task("not_found", (turn,), world.documents(), toolset.builtin, toolset.records)


def two_hop(random: Random, split: Split, toolset: Toolset) -> Task:
    """The mayor of the capital of X: the first answer is needed for the second question."""
    world = World(random, split)
    kind = random.choice(SUBJECT_KINDS)
    first = world.add(world.relation(kind, ("place", "person")), world.entity(kind))
    second_relation = world.relation(first.relation.object)
    while second_relation is first.relation:
        second_relation = world.relation(first.relation.object)
    second = world.add(second_relation, first.object)
    _surround(world, [first, second], random.randint(1, 6))
    nested = f"the {second.relation.label} of {_noun(first)}"
    question = phrase(random, split, phrasing.NOUN_FORMS, x=nested)
    steps = (_search(first), _search(second, f"{first.sentence} Now I need {_noun(second)}."))
    answer = f"{nested[0].upper()}{nested[1:]} is {second.object}."
    return Task(
        "two_hop",
        (Turn(question, steps, second.sentence, answer),),
        world.documents(),
        toolset.builtin,
        toolset.records,
    )


def arithmetic(random: Random, split: Split, toolset: Toolset) -> Task:
    """A sum in symbols, in words or in a small story, worked out by Python."""
    question, expression = _story(random, split) if random.random() < 0.4 else _expression(random, split)
    return Task("arithmetic", (_sum(question, expression),), (), toolset.builtin, toolset.records)


def lookup_compute(random: Random, split: Split, toolset: Toolset) -> Task:
    """A number from the documents, changed by Python."""
    world = World(random, split)
    fact = _new_fact(world, ("number",))
    _surround(world, [fact], random.randint(1, 6))
    operator, n = random.choice("+-*"), number(random, split, random.choice((1, 2, 2, 3)))
    question = phrase(random, split, phrasing.SHIFT_FORMS[operator], x=_noun(fact), n=n)
    expression = f"{fact.object} {operator} {n}"
    result = _evaluate(expression)
    steps = (_search(fact), _python(f"{fact.sentence} Now I compute {expression}.", f"print({expression})"))
    turn = Turn(question, steps, f"The result is {result}.", f"The result is {result}.")
    return Task("lookup_compute", (turn,), world.documents(), toolset.builtin, toolset.records)


def compare(random: Random, split: Split, toolset: Toolset) -> Task:
    """Two numbers looked up in one block, compared by Python."""
    world = World(random, split)
    first = _new_fact(world, ("number",))
    second = world.add(first.relation, world.entity(first.relation.subject))
    _surround(world, [first, second], random.randint(1, 5))
    word, sign = random.choice((("larger", ">"), ("smaller", "<")))
    label, a, b = first.relation.label, first.subject, second.subject
    question = phrase(random, split, phrasing.COMPARISON_FORMS, c=word, r=label, a=a, b=b)
    comparison = f"{first.object} {sign} {second.object}"
    winner = a if _compare(int(first.object), sign, int(second.object)) else b
    steps = (
        Step(f"I need {_noun(first)} and {_noun(second)}.", (_query(first), _query(second))),
        _python(
            f"{first.sentence} {second.sentence} Now I compare {a} and {b}: which is {word}?",
            f"print('{a}' if {comparison} else '{b}')",
        ),
    )
    turn = Turn(question, steps, f"The result is {winner}.", f"{winner} has the {word} {label}.")
    return Task("compare", (turn,), world.documents(), toolset.builtin, toolset.records)


def two_calls(random: Random, split: Split, toolset: Toolset) -> Task:
    """Two unrelated facts, looked up in one block."""
    world = World(random, split)
    first, second = _new_fact(world), _new_fact(world)
    _surround(world, [first, second], random.randint(1, 5))
    question = phrase(random, split, phrasing.PAIR_FORMS, x=_noun(first), y=_noun(second))
    step = Step(f"I need {_noun(first)} and {_noun(second)}.", (_query(first), _query(second)))
    turn = Turn(question, (step,), f"{first.sentence} {second.sentence}", f"{first.sentence} {second.sentence}")
    return Task("two_calls", (turn,), world.documents(), toolset.builtin, toolset.records)


def follow_up(random: Random, split: Split, toolset: Toolset) -> Task:
    """A second question about the subject of the first, which it does not name; or a second sum."""
    if "python" in toolset.builtin and random.random() < FOLLOW_UP_SUM_SHARE:
        return _two_sums(random, split, toolset)
    world = World(random, split)
    first = _new_fact(world)
    second_relation = world.relation(first.relation.subject)
    while second_relation is first.relation:
        second_relation = world.relation(first.relation.subject)
    second = world.add(second_relation, first.subject)
    _surround(world, [first, second], random.randint(1, 5))
    pronoun = "its" if first.relation.subject == "place" else "their"
    question = phrase(random, split, phrasing.FOLLOW_UP_FORMS, p=pronoun, r=second.relation.label)
    turns = (
        Turn(_ask(random, split, first), (_search(first),), first.sentence, first.sentence),
        Turn(question, (_search(second),), second.sentence, second.sentence),
    )
    return Task("follow_up", turns, world.documents(), toolset.builtin, toolset.records)


def own_tool(random: Random, split: Split, toolset: Toolset) -> Task:
    """A tool nobody trained on by name: a table behind a function."""
    fact, tool, records = _record_question(random, split, toolset)
    call = DemonstratedCall(tool.name, {tool.parameter: fact.subject})
    turn = Turn(_ask(random, split, fact), (Step(f"I need {_noun(fact)}.", (call,)),), fact.sentence, fact.sentence)
    return Task("own_tool", (turn,), (), toolset.builtin, records)


def error_retry(random: Random, split: Split, toolset: Toolset) -> Task:
    """The name is misspelt; the tool's error suggests the right one."""
    fact, tool, records = _record_question(random, split, toolset)
    wrong = misspelt(random, fact.subject)
    asked = Fact(fact.relation, wrong, fact.object)
    steps = (
        Step(f"I need {_noun(asked)}.", (DemonstratedCall(tool.name, {tool.parameter: wrong}),)),
        Step(f"The name is {fact.subject}.", (DemonstratedCall(tool.name, {tool.parameter: fact.subject}),)),
    )
    turn = Turn(_ask(random, split, asked), steps, fact.sentence, fact.sentence)
    return Task("error_retry", (turn,), (), toolset.builtin, records)


def chat(random: Random, split: Split, toolset: Toolset) -> Task:
    """Nothing to look up and nothing to compute."""
    if random.random() < 0.5:
        who = name(random, split)
        question = phrase(random, split, phrasing.INTRODUCTIONS, n=who)
        turn = Turn(question, (), f"The user is called {who}.", f"Nice to meet you, {who}!")
    else:
        form, reasoning, answer = random.choice(phrasing.CHAT)
        question = phrase(random, split, (form,))
        turn = Turn(question, (), reasoning, answer)
    return Task("chat", (turn,), (), toolset.builtin, toolset.records)


def echo(random: Random, split: Split, toolset: Toolset) -> Task:
    """Repeat a list of names and numbers: the first lesson, since every other kind needs exact copying."""
    words = [
        name(random, split) if random.random() < 0.6 else str(number(random, split, random.choice((1, 2, 3, 4))))
        for _ in range(random.randint(1, 8))
    ]
    said = " ".join(words)
    turn = Turn(phrase(random, split, phrasing.ECHO_FORMS, x=said), (), f"The user says {said}.", said)
    return Task("echo", (turn,), (), toolset.builtin, toolset.records)


TaskKind = Callable[[Random, Split, Toolset], Task]
SEARCH_KINDS: tuple[TaskKind, ...] = (lookup, not_found, two_hop, two_calls, follow_up)
SEARCH_AND_PYTHON_KINDS: tuple[TaskKind, ...] = (lookup_compute, compare)
PYTHON_KINDS: tuple[TaskKind, ...] = (arithmetic,)
RECORD_KINDS: tuple[TaskKind, ...] = (own_tool, error_retry)
FIRST_LESSONS: tuple[TaskKind, ...] = (echo, echo, echo, chat, lookup, arithmetic)
"""Short and full of copying; without a tools preamble."""
KINDS: tuple[TaskKind, ...] = (
    *SEARCH_KINDS, *SEARCH_AND_PYTHON_KINDS, *PYTHON_KINDS, *RECORD_KINDS, chat,
)  # fmt: skip


def kinds_for(toolset: Toolset) -> tuple[TaskKind, ...]:
    """The kinds that can be solved with a toolset."""
    kinds: list[TaskKind] = [chat]
    if "search" in toolset.builtin:
        kinds += SEARCH_KINDS
    if "python" in toolset.builtin:
        kinds += PYTHON_KINDS
    if {"search", "python"} <= set(toolset.builtin):
        kinds += SEARCH_AND_PYTHON_KINDS
    if toolset.records:
        kinds += RECORD_KINDS
    return tuple(kinds)


def _new_fact(world: World, objects: tuple[Kind, ...] = ("place", "person", "number", "year")) -> Fact:
    kind = world.random.choice(SUBJECT_KINDS)
    return world.add(world.relation(kind, objects), world.entity(kind))


def _surround(world: World, facts: list[Fact], count: int) -> None:
    world.add_distractors(count, [(fact.subject, fact.relation.subject) for fact in facts], set())


def _ask(random: Random, split: Split, fact: Fact) -> str:
    forms = (fact.relation.question,) if random.random() < 0.35 else phrasing.NOUN_FORMS
    return phrase(random, split, forms, x=_noun(fact), s=fact.subject)


def _noun(fact: Fact) -> str:
    return f"the {fact.relation.label} of {fact.subject}"


def _query(fact: Fact) -> DemonstratedCall:
    return DemonstratedCall("search", {"query": f"{fact.relation.label} of {fact.subject}"})


def _search(fact: Fact, reasoning: str = "") -> Step:
    return Step(reasoning or f"I need {_noun(fact)}.", (_query(fact),))


def _python(reasoning: str, code: str) -> Step:
    return Step(reasoning, (DemonstratedCall("python", {"code": code}),))


def _expression(random: Random, split: Split) -> tuple[str, str]:
    a, b = operands(random, split)
    operator = random.choice("+-*")
    expression = f"{a} {operator} {b}"
    shape = random.random()
    if shape < 0.2:
        expression += f" {random.choice('+-*')} {number(random, split, random.choice((1, 2, 3)))}"
    elif shape < 0.3:
        expression = f"({expression}) {random.choice('+-*')} {number(random, split, random.choice((1, 2)))}"
    shown = expression
    if random.random() < 0.3:
        for symbol, word in phrasing.OPERATOR_WORDS.items():
            shown = shown.replace(symbol, word)
    return phrase(random, split, phrasing.EXPRESSION_FORMS, x=shown), expression


def _two_sums(random: Random, split: Split, toolset: Toolset) -> Task:
    """The second sum goes on with the result of the first, or is about other numbers."""
    first = arithmetic(random, split, toolset).turns[0]
    second = arithmetic(random, split, toolset).turns[0]
    if random.random() < 0.7:
        result = first.answer.removeprefix("The result is ").removesuffix(".")
        operator, n = random.choice("+-*"), number(random, split, random.choice((1, 2, 2, 3)))
        second = _sum(phrase(random, split, phrasing.FOLLOW_UP_SUMS[operator], n=n), f"{result} {operator} {n}")
    return Task("follow_up", (first, second), (), toolset.builtin, toolset.records)


def _sum(question: str, expression: str) -> Turn:
    result = _evaluate(expression)
    step = _python(f"I compute {expression}.", f"print({expression})")
    return Turn(question, (step,), f"The result is {result}.", f"The result is {result}.")


def _story(random: Random, split: Split) -> tuple[str, str]:
    a, b = operands(random, split)
    form, operator = random.choice(phrasing.STORIES)
    if operator == "-":
        a, b = max(a, b), min(a, b)
    values = {"a": a, "b": b, "things": random.choice(phrasing.THINGS), "who": name(random, split)}
    return phrase(random, split, (form,), **values), f"{a} {operator} {b}"


def _evaluate(expression: str) -> int:
    """The value of an expression this module wrote itself: digits, + - * and brackets."""
    assert set(expression) <= set("0123456789+-*() ")
    return int(eval(expression, {"__builtins__": {}}))


def _compare(a: int, sign: str, b: int) -> bool:
    return a > b if sign == ">" else a < b


def _record_question(random: Random, split: Split, toolset: Toolset) -> tuple[Fact, RecordTool, tuple[RecordTool, ...]]:
    """A fact that one of the record tools knows, that tool, and all tools with their tables filled."""
    world = World(random, split)
    filled, facts = [], []
    for tool in toolset.records:
        relation = relation_named(tool.name)
        known = [world.add(relation, world.entity(relation.subject)) for _ in range(random.randint(2, 6))]
        records = {fact.subject: fact.object for fact in known}
        filled.append(RecordTool(tool.name, tool.description, tool.parameter, tool.parameter_description, records))
        facts.append(random.choice(known))
    at = random.randrange(len(filled))
    return facts[at], filled[at], tuple(filled)
