"""Number ranges: a number can be written exactly when it lies within the bounds."""

from __future__ import annotations

import json
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v32.model_runtime.grammar.library import load_xgrammar
from v32.model_runtime.grammar.numbers import number_expression
from v32.model_runtime.grammar.schema import Number, read_arguments

from .conftest import tool

xgrammar = load_xgrammar()
BYTES = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(256)] + [b"<eos>"], stop_token_ids=[256])
COMPILER = xgrammar.GrammarCompiler(BYTES, max_threads=1, cache_enabled=False)


def shape(**schema: object) -> Number:
    number = read_arguments("f", tool({"a": schema}).parameters).options[0].members[0].shape
    assert isinstance(number, Number)
    return number


class Range:
    def __init__(self, **schema: object) -> None:
        expression = number_expression(shape(**schema))
        self._grammar = None if expression is None else COMPILER.compile_grammar(f"root ::= {expression}\n")

    def __contains__(self, text: str) -> bool:
        if self._grammar is None:
            return False
        matcher = xgrammar.GrammarMatcher(self._grammar, terminate_without_stop_token=True)
        return bool(matcher.accept_string(text) and matcher.is_completed())


bounds = st.integers(-1500, 1500)
decimals = st.builds(lambda n, scale: n / 10**scale, st.integers(-20_000, 20_000), st.integers(0, 4))


@given(low=st.none() | bounds, high=st.none() | bounds, seed=st.integers(0, 99))
def test_integers(low: int | None, high: int | None, seed: int) -> None:
    limits = {key: bound for key, bound in (("minimum", low), ("maximum", high)) if bound is not None}
    numbers = Range(type="integer", **limits)
    draw = random.Random(seed)
    near = [bound + step for bound in (low, high, 0) if bound is not None for step in (-11, -10, -1, 0, 1, 9, 10, 99)]
    for value in [*near, *(draw.randint(-20_000, 20_000) for _ in range(20))]:
        expected = (low is None or value >= low) and (high is None or value <= high)
        assert (str(value) in numbers) is expected, value


@given(
    low=st.none() | decimals,
    high=st.none() | decimals,
    excludes=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 99),
)
def test_decimals(low: float | None, high: float | None, excludes: tuple[bool, bool], seed: int) -> None:
    schema = {}
    if low is not None:
        schema["exclusiveMinimum" if excludes[0] else "minimum"] = low
    if high is not None:
        schema["exclusiveMaximum" if excludes[1] else "maximum"] = high
    numbers = Range(type="number", **schema)
    draw = random.Random(seed)
    steps = (-10, -1, -0.1, -0.01, -0.00012, 0, 0.00012, 0.001, 0.05, 0.5, 1, 3)
    near = [round(bound + step, 6) for bound in (low, high, 0) if bound is not None for step in steps]
    drawn = [round(draw.uniform(-2500, 2500), draw.randint(0, 5)) for _ in range(20)]
    for value in [*near, *drawn, 5, -5, 0, 2e-5, -2e-5, 1e-300, -1e-300, 1e22, -1e22]:
        above = low is None or (Fraction(value) > Fraction(low) if excludes[0] else Fraction(value) >= Fraction(low))
        below = high is None or (Fraction(value) < Fraction(high) if excludes[1] else Fraction(value) <= Fraction(high))
        # A tiny number between a bound close to zero and zero has no canonical spelling in the grammar.
        if 0 < abs(value) < 1e-4 and any(bound and abs(bound) < 1e-4 for bound in (low, high)):
            continue
        assert (json.dumps(value) in numbers) is (above and below), value


@pytest.mark.parametrize("text", ["-0", "01", "1.", ".5", "1.50", "1e5", "1E+16", "+1", "1e+16 ", "--1", "NaN"])
def test_only_canonical_spellings(text: str) -> None:
    assert text not in Range(type="number")
    assert text not in Range(type="number", minimum=-100, maximum=100)


def test_bounds_that_leave_nothing() -> None:
    assert number_expression(shape(type="integer", minimum=3, maximum=2)) is None
    assert number_expression(shape(type="integer", exclusiveMinimum=2, maximum=2.5)) is None
    assert number_expression(shape(type="number", exclusiveMinimum=2, exclusiveMaximum=2)) is None
