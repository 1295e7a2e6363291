"""A slip: a call the model might get wrong, put before the right one, so that it learns to go on from the error.

Only slips whose error says what is wrong: a tool or a parameter that does not exist, code that is no Python.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from random import Random

from v32.agent.tasks.names import invented_word, misspelt
from v32.agent.tasks.task import DemonstratedCall, Step, Task

SHARE = 0.15
"""Of the dialogues where one is possible."""


def perhaps_slipping(random: Random, task: Task) -> Task:
    """The task, now and then with a slip in the answer to its last question."""
    return with_slip(random, task) if random.random() < SHARE else task


def with_slip(random: Random, task: Task) -> Task:
    """One step of the last turn is tried wrongly first; a task without such a step stays as it is."""
    *earlier, turn = task.turns
    wrong = {at: slip for at, step in enumerate(turn.steps) if (slip := _slip(random, step, task))}
    if not wrong:
        return task
    at = random.choice(list(wrong))
    steps = (*turn.steps[:at], wrong[at], *turn.steps[at:])
    return replace(task, turns=(*earlier, replace(turn, steps=steps)))


def _slip(random: Random, step: Step, task: Task) -> Step | None:
    if len(step.calls) > 1:
        return None
    call = step.calls[0]
    if call.name == "python":
        wrong = DemonstratedCall("python", {"code": _broken(random, call.arguments["code"])})
    elif call.name in {tool.name for tool in task.records}:
        wrong = _misnamed(random, call)
    else:
        return None
    return Step(step.reasoning, (wrong,), is_slip=True)


def _misnamed(random: Random, call: DemonstratedCall) -> DemonstratedCall:
    """Another tool or another parameter, half of the time a similar one."""
    (parameter, value), *_ = call.arguments.items()
    if random.random() < 0.4:
        return DemonstratedCall(_other_word(random, call.name), call.arguments)
    return DemonstratedCall(call.name, {_other_word(random, parameter): value})


def _other_word(random: Random, word: str) -> str:
    other = misspelt(random, word) if len(word) > 3 and random.random() < 0.5 else invented_word(random)
    return other if other != word else f"{word}_{invented_word(random)}"


def _broken(random: Random, code: str) -> str:
    """The code with a piece missing, doubled or moved, so that it is no Python any more."""
    while True:
        start, end = sorted(random.sample(range(len(code) + 1), 2))
        at, piece = random.randrange(len(code) + 1), code[start : min(end, start + 8)]
        broken = random.choice((code[:start] + code[start + len(piece) :], code[:at] + piece + code[at:]))
        if not _compiles(broken):
            return broken


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<cell>", "exec")
    except SyntaxError:
        return False
    return True
