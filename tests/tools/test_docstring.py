from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v32.tools.docstring import parse_docstring

GOOGLE = """Look a word up in the
dictionary.

Only nouns are known:
- in English
- in Danish

Args:
    word (str): The noun, in
        the singular.
    language: Two letters: `en` or `da`.
    *rest: More nouns.

Returns:
    word: not a parameter.
"""
NUMPY = """Look a word up in the
dictionary.

Only nouns are known:
- in English
- in Danish

Parameters
----------
word : str
    The noun, in
    the singular.
language : {"en", "da"}, optional
    Two letters: `en` or `da`.
*rest
    More nouns.

Returns
-------
word
    not a parameter
"""
REST = """Look a word up in the
dictionary.

Only nouns are known:
- in English
- in Danish

:param word: The noun, in
    the singular.
:param str language: Two letters: `en` or `da`.
:param rest: More nouns.
:returns: not a parameter
"""


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, REST], ids=["google", "numpy", "rest"])
def test_the_three_styles_say_the_same(text: str) -> None:
    doc = parse_docstring(text)
    assert doc.description == ("Look a word up in the dictionary.\n\nOnly nouns are known:\n- in English\n- in Danish")
    assert doc.parameters == {
        "word": "The noun, in the singular.",
        "language": "Two letters: `en` or `da`.",
        "rest": "More nouns.",
    }


def test_without_sections_everything_is_description() -> None:
    assert parse_docstring("One line.").description == "One line."
    assert parse_docstring(None).description == ""
    assert parse_docstring("Note: this is no section.").description == "Note: this is no section."


def test_numpy_names_may_share_a_description() -> None:
    assert parse_docstring("X.\n\nParameters\n----------\na, b : int\n    Both.\n").parameters == {
        "a": "Both.",
        "b": "Both.",
    }


@given(st.text(alphabet=" \n\t:-*abArgsParameters#>0.", max_size=200))
def test_any_text_is_a_docstring(text: str) -> None:
    parse_docstring(text)
