from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from v32.tools.gate import clean, for_model

HOSTILE = st.text(
    alphabet=st.one_of(
        st.characters(),
        st.sampled_from(
            "\x1b[]0;31mP\\^_\x07\x9b\x9c\x9d\x90\r\n\x85\u2028\u202e\u2066\u200b\U000e0041\U000e0100<｜|>"
        ),
    ),
    max_size=400,
)


def survivors(text: str) -> list[str]:
    """Characters that nobody sees but something may act on."""
    return [char for char in text if char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs")]


@given(HOSTILE, st.integers(200, 500))
@example("\x1b" * 50 + "[31mred", 200)
@example("\x1b]0;title\x1b[31m", 200)
def test_idempotent_clean_and_bounded(text: str, limit: int) -> None:
    once = for_model(text, max_chars=limit)
    assert for_model(once, max_chars=limit) == once
    assert len(once) <= limit
    assert survivors(once) == []
    assert not re.search("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e0fff]", once)


@given(st.binary(max_size=300))
def test_any_bytes_become_text(data: bytes) -> None:
    once = clean(data)
    assert clean(once) == once
    once.encode()  # there are no lone surrogates


FILLERS = "\u115f\u1160\u3164\uffa0"  # letters that show nothing


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Zs"), exclude_characters=FILLERS), max_size=200))
def test_visible_text_is_left_alone(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07shown", "shown"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred", "red"),
        ("\x1bPqdata\x1b\\after", "after"),
        ("unfinished \x1b]0;still readable", "unfinished 0;still readable"),
        ("a\x00b\x08c\x7fd", "abcd"),
        ("line\r\nline\rline\u2028line", "line\nline\nline\nline"),
        ("user\u202egnp.exe", "usergnp.exe"),
        ("hi\U000e0049\U000e0047 there", "hi there"),
        ("<\u200b｜User｜>", "<｜User｜>"),
        ("tab\tstays, so does 日本語 and 👩‍👩‍👧", "tab\tstays, so does 日本語 and 👩‍👩‍👧"),
        ("heart \u2764\ufe0f\u200d\U0001f525 \u2603\ufe0e", "heart \u2764\ufe0f\u200d\U0001f525 \u2603\ufe0e"),
        ("ok\ufe01\ufe02\ufe0f\u200d\u200c!", "ok\ufe01!"),
        ("a\u200d\u200c\u200db", "a\u200db"),
        ("fill\u3164er\u115f\u034f", "filler"),
        ("\ud83d", "\ufffd"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
    ],
)
def test_what_is_taken_away(dirty: str | bytes, expected: str) -> None:
    assert clean(dirty) == expected


@given(st.integers(1, 5000), st.integers(200, 1000))
def test_the_cut_counts_exactly(length: int, limit: int) -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    shown = for_model(text, max_chars=limit, hint="use start_line")
    if length <= limit:
        assert shown == text
        return
    match = re.search(r"\n\[([\d,]+) of ([\d,]+) characters left out; use start_line\]\n", shown)
    assert match
    head, tail = shown[: match.start()], shown[match.end() :]
    assert text.startswith(head)
    assert text.endswith(tail)
    assert int(match[1].replace(",", "")) == length - len(head) - len(tail)
    assert int(match[2].replace(",", "")) == length
    assert len(head) + len(tail) > limit // 2


def test_cuts_fall_on_line_ends() -> None:
    text = "\n".join(f"line {i}" for i in range(10_000))
    head, tail = for_model(text).split("\n[", 1)
    assert re.fullmatch(r"line \d+", head.split("\n")[-1])
    assert re.fullmatch(r"line \d+", tail.split("]\n", 1)[1].split("\n")[0])


def test_a_long_hint_does_not_crowd_out_the_text() -> None:
    assert len(for_model("x" * 5000, max_chars=300, hint="h" * 1000).replace("x", "")) < 100


def test_hostile_text_is_cleaned_in_linear_time() -> None:
    import time

    start = time.perf_counter()
    for unit in ("\x1b]", "\x1b[", "\x1b[0", "\x9d", "\x1b ", "\r"):
        clean(unit * 200_000)
    assert time.perf_counter() - start < 2


def test_a_limit_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_chars is 10"):
        for_model("x", max_chars=10)
