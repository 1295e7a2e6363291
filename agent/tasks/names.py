"""Invented names and numbers, divided for good into a training part and a held-out part."""

from __future__ import annotations

import zlib
from random import Random
from typing import Literal

Split = Literal["train", "held-out"]

ONSETS = tuple("b br c ch d dr f fl g gr h j k kr l m n p pl pr qu r s sh sk st t th tr v vl w y z".split())  # noqa: SIM905
VOWELS = tuple("a e i o u ae ai au ea ei ia io oa ou".split())  # noqa: SIM905
VOWEL_WEIGHTS = [6] * 5 + [1] * 9
CODAS = ["", "", "", "n", "r", "l", "s", "t", "k", "m", "nd", "rk", "st", "x", "th", "ng"]
HELD_OUT_SHARE = 10
"""One of so many names, numbers and phrasings is never used in training."""
HARD_SHARES = {"train": (0.25, 0.12), "held-out": (0.12, 0.04)}
"""Round numbers and numbers of two different digits, of those above 99; training sees more of them."""


def is_held_out(*parts: object) -> bool:
    """A fixed coin for anything printable."""
    return zlib.crc32(repr(parts).encode()) % HELD_OUT_SHARE == 0


def name(random: Random, split: Split) -> str:
    """A capitalised invented name of 4 to 10 letters."""
    while True:
        candidate = _raw_name(random)
        if 4 <= len(candidate) <= 10 and is_held_out(candidate) == (split == "held-out"):
            return candidate


def invented_word(random: Random) -> str:
    """A word in small letters, as a parameter or part of a tool's name."""
    return _raw_name(random).lower()


def misspelt(random: Random, word: str) -> str:
    """The word with one inner letter dropped, doubled or changed."""
    while True:
        at = random.randrange(1, len(word))
        letter = random.choice("abcdefghijklmnopqrstuvwxyz")
        wrong = random.choice(
            (word[:at] + word[at + 1 :], word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :])
        )
        if wrong != word and len(wrong) >= 3:
            return wrong


def number(random: Random, split: Split, digits: int) -> int:
    """So many digits; now and then a round number or one of few different digits, which are harder to copy."""
    draw, (round_share, repetitive_share) = random.random(), HARD_SHARES[split]
    if digits > 2 and draw < round_share:
        zeros = random.randint(1, digits - 1)
        return int(number(random, split, digits - zeros) * 10**zeros)
    if digits > 2 and draw < round_share + repetitive_share:
        first = random.choice("123456789")
        return int(first + "".join(random.choices((first, "0"), k=digits - 1)))
    return random.randint(10 ** (digits - 1) if digits > 1 else 2, 10**digits - 1)


def operands(random: Random, split: Split, digits: tuple[int, ...] = (1, 2, 2, 3, 3, 4)) -> tuple[int, int]:
    """Two numbers whose pair belongs to the split."""
    while True:
        pair = number(random, split, random.choice(digits)), number(random, split, random.choice(digits))
        if is_held_out(*pair) == (split == "held-out"):
            return pair


def _raw_name(random: Random) -> str:
    if random.random() < 0.15:
        letters = random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(4, 7))
        return "".join(letters).capitalize()
    syllables = random.choice((2, 2, 2, 3))
    text = ""
    for i in range(syllables):
        text += random.choice(ONSETS) + random.choices(VOWELS, VOWEL_WEIGHTS)[0]
        if i == syllables - 1 or random.random() < 0.3:
            text += random.choice(CODAS)
    return text.capitalize()
