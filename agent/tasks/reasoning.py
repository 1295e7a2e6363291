"""Tasks that are answered by reasoning alone, without any tool: what the Speciale twin is trained and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from v32.agent.tasks.kinds import TaskKind
from v32.agent.tasks.names import Split, is_held_out, name, number, operands
from v32.agent.tasks.phrasing import phrase
from v32.agent.tasks.task import Task, Toolset, Turn

ADDITION_FORMS = ("What is {a} + {b}?", "Add {a} and {b}.", "Compute {a} + {b}.", "How much is {a} plus {b}?")
LARGEST_FORMS = ("Which is the largest: {x}?", "Find the largest of {x}.", "Tell me the largest number: {x}.")
COUNT_FORMS = ("How many names are there: {x}?", "Count the names: {x}.", "Count these names for me: {x}.")
REVERSAL_FORMS = ("Write {x} backwards.", "What is {x} read backwards?", "Reverse the digits of {x}.")


def addition(random: Random, split: Split, toolset: Toolset) -> Task:
    """Digit by digit from the right, with the carry."""
    a, b = operands(random, split, (2, 2, 3))
    question = phrase(random, split, ADDITION_FORMS, a=a, b=b)
    return _task("addition", question, " ".join(_column_sums(a, b)), f"The sum is {a + b}.")


def largest(random: Random, split: Split, toolset: Toolset) -> Task:
    """The largest number so far, one by one."""
    numbers = _numbers(random, split)
    steps, best = [], numbers[0]
    for candidate in numbers[1:]:
        sign = ">" if candidate > best else "<"
        steps.append(f"{candidate} {sign} {best}.")
        best = max(best, candidate)
    question = phrase(random, split, LARGEST_FORMS, x=_listed(numbers))
    return _task("largest", question, " ".join(steps), f"The largest is {best}.")


def count(random: Random, split: Split, toolset: Toolset) -> Task:
    """Each name with its number."""
    names = [name(random, split) for _ in range(random.randint(2, 7))]
    steps = " ".join(f"{i} is {who}." for i, who in enumerate(names, 1))
    return _task("count", phrase(random, split, COUNT_FORMS, x=_listed(names)), steps, f"There are {len(names)} names.")


def reversal(random: Random, split: Split, toolset: Toolset) -> Task:
    """Digits one by one from the right."""
    digits = _digits(random, split)
    steps = " ".join(f"Then {digit}." for digit in reversed(digits))
    return _task("reversal", phrase(random, split, REVERSAL_FORMS, x=digits), steps, digits[::-1])


REASONING_KINDS: tuple[TaskKind, ...] = (addition, largest, count, reversal)


def _task(kind: str, question: str, reasoning: str, answer: str) -> Task:
    return Task(kind, (Turn(question, (), reasoning, answer),))


def _column_sums(a: int, b: int) -> list[str]:
    """`7 + 8 = 15.`, then `4 + 3 + 1 = 8.`: the columns of a + b from the right; a missing digit is 0."""
    width = max(len(str(a)), len(str(b)))
    carry, steps = 0, []
    for x, y in zip(reversed(f"{a:0{width}}"), reversed(f"{b:0{width}}")):
        total = int(x) + int(y) + carry
        steps.append(f"{x} + {y} + {carry} = {total}.")
        carry = total // 10
    return steps


def _numbers(random: Random, split: Split) -> list[int]:
    """Different numbers."""
    while True:
        numbers = [number(random, split, random.choice((2, 3, 3))) for _ in range(random.randint(2, 5))]
        if len(set(numbers)) == len(numbers) and is_held_out(*numbers) == (split == "held-out"):
            return numbers


def _digits(random: Random, split: Split) -> str:
    """Different digits, so that each place can be found again."""
    while True:
        digits = "".join(random.sample("0123456789", random.randint(3, 6)))
        if is_held_out(digits) == (split == "held-out"):
            return digits


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
