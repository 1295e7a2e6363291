"""How users ask. A phrasing is a lead, a form and a tail; one combination in ten is kept for evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from random import Random
from zlib import crc32

from v32.agent.tasks.names import HELD_OUT_SHARE, Split

LEADS = ("", "", "", "", "Hello. ", "Hi! ", "Please help me. ", "One question: ", "Quick question: ", "Good morning. ")
TAILS = ("", "", "", "", " Thank you.", " Thanks!", " Be brief.", " Please check it.")

NOUN_FORMS = (
    "What is {x}?",
    "Tell me {x}.",
    "I need {x}.",
    "Can you find {x}?",
    "Please look up {x}.",
    "Find {x}.",
    "Do you know {x}?",
    "I would like to know {x}.",
    "Could you tell me {x}?",
    "Give me {x}.",
    "What's {x}?",
    "Search for {x}.",
    "Please tell me {x}.",
    "I am looking for {x}.",
)
PAIR_FORMS = (
    "What are {x} and {y}?",
    "Tell me {x} and {y}.",
    "I need {x} and {y}.",
    "Find {x} and {y}.",
    "Please look up {x} and {y}.",
    "Give me both {x} and {y}.",
    "I would like to know {x} and also {y}.",
    "Can you find {x} and {y}?",
)
EXPRESSION_FORMS = (
    "What is {x}?",
    "Compute {x}.",
    "Calculate {x}.",
    "{x} = ?",
    "How much is {x}?",
    "Please compute {x}.",
    "Work out {x}.",
    "Can you calculate {x}?",
    "I need the result of {x}.",
    "Evaluate {x}.",
)
FOLLOW_UP_FORMS = (
    "And {p} {r}?",
    "And what is {p} {r}?",
    "What is {p} {r}?",
    "Now tell me {p} {r}.",
    "I also need {p} {r}.",
    "And can you find {p} {r}?",
    "What about {p} {r}?",
)
FOLLOW_UP_SUMS = {
    "+": ("Now add {n} to it.", "And plus {n}?", "Add {n} to that.", "And if you add {n}?"),
    "-": ("Now subtract {n} from it.", "And minus {n}?", "Subtract {n} from that.", "And if you subtract {n}?"),
    "*": ("Now multiply it by {n}.", "And times {n}?", "Multiply that by {n}.", "And if you multiply it by {n}?"),
}
COMPARISON_FORMS = (
    "Which is {c}, the {r} of {a} or the {r} of {b}?",
    "Does {a} or {b} have the {c} {r}?",
    "Compare the {r} of {a} and the {r} of {b}: which is {c}?",
    "Who or what has the {c} {r}: {a} or {b}?",
    "Tell me whether {a} or {b} has the {c} {r}.",
)
SHIFT_FORMS = {
    "+": ("What is {x} plus {n}?", "Add {n} to {x}.", "How much is {x} plus {n}?", "Compute {x} plus {n}."),
    "-": ("What is {x} minus {n}?", "Subtract {n} from {x}.", "How much is {x} minus {n}?", "Compute {x} minus {n}."),
    "*": ("What is {x} times {n}?", "Multiply {x} by {n}.", "How much is {x} times {n}?", "Compute {x} times {n}."),
}
STORIES = (
    ("A box holds {a} {things}. How many {things} are in {b} boxes?", "*"),
    ("One ticket costs {a} dollars. How much do {b} tickets cost?", "*"),
    ("There are {a} rows with {b} {things} each. How many {things} are there?", "*"),
    ("A train travels {a} miles a day. How far does it travel in {b} days?", "*"),
    ("{who} has {a} {things} and buys {b} more. How many {things} does {who} have now?", "+"),
    ("{a} {things} are on the table and {b} in the box. How many {things} are there in all?", "+"),
    ("{who} sold {a} {things} on Monday and {b} on Tuesday. How many in all?", "+"),
    ("{who} has {a} {things} and gives away {b}. How many {things} are left?", "-"),
    ("Of {a} {things}, {b} were lost. How many {things} remain?", "-"),
    ("{who} had {a} dollars and spent {b}. How many dollars are left?", "-"),
)
THINGS = ("apples", "books", "coins", "pens", "stones", "eggs", "cards", "tickets")
OPERATOR_WORDS = {"+": "plus", "-": "minus", "*": "times"}

CHAT = (
    ("Hello!", "The user greets me.", "Hello! How can I help you?"),
    ("Hi there.", "The user greets me.", "Hello! How can I help you?"),
    ("Good morning!", "The user greets me.", "Hello! How can I help you?"),
    ("Hey, are you there?", "The user greets me.", "Hello! How can I help you?"),
    ("Thank you!", "The user thanks me.", "You are welcome!"),
    ("Thanks a lot.", "The user thanks me.", "You are welcome!"),
    ("That was helpful, thanks.", "The user thanks me.", "You are welcome!"),
    ("Who are you?", "The user asks who I am.", "I am a tiny DeepSeek-V3.2 that can use tools."),
    ("What are you?", "The user asks who I am.", "I am a tiny DeepSeek-V3.2 that can use tools."),
    ("What is your name?", "The user asks who I am.", "I am a tiny DeepSeek-V3.2 that can use tools."),
    ("What can you do?", "The user asks what I can do.", "I can search documents and run Python code."),
    ("How can you help me?", "The user asks what I can do.", "I can search documents and run Python code."),
    ("Goodbye.", "The user says goodbye.", "Goodbye!"),
    ("Bye!", "The user says goodbye.", "Goodbye!"),
    ("See you later.", "The user says goodbye.", "Goodbye!"),
    ("How are you?", "The user asks how I am.", "I am fine, thank you."),
    ("How are you doing today?", "The user asks how I am.", "I am fine, thank you."),
)
"""Question, reasoning, answer."""
INTRODUCTIONS = (
    "My name is {n}.",
    "I am {n}.",
    "Hello, I am {n}.",
    "Call me {n}.",
    "Please call me {n}.",
    "Hi, my name is {n}.",
    "People call me {n}.",
)


ECHO_FORMS = ("Repeat: {x}", "Say this again: {x}", "Repeat after me: {x}", "Copy this: {x}")


def phrase(random: Random, split: Split, forms: Sequence[str], **values: object) -> str:
    """A question of the split: lead, filled form, tail."""
    form = random.choice(forms)
    lead, tail = random.choice(_decorations(form)[split])
    text = form.format(**values)
    return lead + text[0].upper() + text[1:] + tail


@cache
def _decorations(form: str) -> dict[Split, list[tuple[str, str]]]:
    """Leads and tails of a form, divided for good; plain leads and tails keep their weight."""
    pairs = sorted(set(itertools.product(LEADS, TAILS)), key=lambda pair: crc32(repr((form, pair)).encode()))
    held_out = set(pairs[: max(len(pairs) // HELD_OUT_SHARE, 1)])
    weighted = list(itertools.product(LEADS, TAILS))
    return {
        "train": [pair for pair in weighted if pair not in held_out],
        "held-out": [pair for pair in weighted if pair in held_out],
    }
