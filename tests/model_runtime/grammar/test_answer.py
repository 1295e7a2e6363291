"""Answers in JSON: what the schema allows can be written, nothing else can, and calls stay possible beside it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v32.model_runtime.encoding import V32
from v32.model_runtime.errors import UnsupportedSchemaError
from v32.model_runtime.grammar import ConstraintCompiler

from .conftest import NOW, SEARCH, accepts, completion, token_ids
from .test_random_walks import Walk, parse

ANY_OBJECT = {"type": "object"}
REPORT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"enum": ["new", "old"]}},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
    },
    "required": ["title", "stars"],
    "additionalProperties": False,
    "$defs": {
        "part": {"type": "object", "properties": {"parts": {"type": "array", "items": {"$ref": "#/$defs/part"}}}}
    },
}
BLOCK = completion([("search", {"query": "x"})], thinking_mode="chat", reasoning="")

words = st.text('ab <>/"\\\n｜{}é東', max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


def allows(
    compiler: ConstraintCompiler, text: str, schema: dict[str, Any], tool_choice: str = "none", mode: str = "chat"
) -> bool:
    constraint = compiler.compile([SEARCH, NOW], tool_choice, mode, answer_schema=schema)  # type: ignore[arg-type]
    return accepts(constraint, token_ids(compiler, text + V32.eos))


@given(value=st.dictionaries(words, values, max_size=4))
def test_every_object_can_be_an_answer(deepseek: ConstraintCompiler, value: dict[str, Any]) -> None:
    assert allows(deepseek, json.dumps(value, ensure_ascii=False), ANY_OBJECT)


@pytest.mark.parametrize(
    "text", ["", "Sure.", "[]", "3", '{"a": 1} ', ' {"a": 1}', '{"a": 1}{}', '{"a": 1', "{'a': 1}"]
)
def test_what_is_no_object_is_refused(compiler: ConstraintCompiler, text: str) -> None:
    assert allows(compiler, '{"a": 1}', ANY_OBJECT)
    assert not allows(compiler, text, ANY_OBJECT)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
@pytest.mark.parametrize("choice", ["none", "auto"])
@pytest.mark.parametrize("mode", ["thinking", "chat"])
def test_walks_end_in_a_call_or_an_answer_of_the_schema(
    compiler: ConstraintCompiler, seed: int, choice: str, mode: str
) -> None:
    constraint = compiler.compile([SEARCH, NOW], choice, mode, answer_schema=REPORT)  # type: ignore[arg-type]
    parsed = parse(compiler, Walk(compiler, constraint.start(), seed).run(free_steps=10 * seed), mode)
    assert parsed.deviations == []
    assert parsed.malformed == []
    if parsed.tool_calls:
        assert choice == "auto"
        assert parsed.content == ""
    else:
        jsonschema.validate(json.loads(parsed.content), REPORT, cls=jsonschema.Draft202012Validator)


def test_reasoning_is_free_and_calls_stay_possible(compiler: ConstraintCompiler) -> None:
    answer, block = '{"title": "a", "stars": 3}', BLOCK.removesuffix(V32.eos)
    assert allows(compiler, f"Hm, {{ 3 stars?</think>{answer}", REPORT, "auto", "thinking")
    assert allows(compiler, f"Hm.</think>{block}", REPORT, "auto", "thinking")
    assert not allows(compiler, f"Hm.</think>Let me see.{block}", REPORT, "auto", "thinking")
    assert not allows(compiler, f"Hm.</think>{answer}{block}", REPORT, "auto", "thinking")
    assert not allows(compiler, f"Hm.</think>{answer.replace('3', '9')}", REPORT, "auto", "thinking")
    assert not allows(compiler, answer, REPORT, "required")
    assert allows(compiler, block, REPORT, "search")


def test_no_marker_stands_inside_a_string(compiler: ConstraintCompiler) -> None:
    for marker in ("<think>", "</think>", "<｜DSML｜function_calls>", "<|DSML|invoke"):
        assert not allows(compiler, json.dumps({"a": f"x {marker}"}, ensure_ascii=False), ANY_OBJECT)


def test_what_only_the_validator_checks_is_reported(deepseek: ConstraintCompiler) -> None:
    schema = {"type": "string", "pattern": "^a"}
    constraint = deepseek.compile([], "none", "chat", answer_schema=schema)
    assert constraint.grammar.loosened_answer == ("/: pattern",)
    assert accepts(constraint, token_ids(deepseek, f'"b"{V32.eos}'))
    assert not accepts(constraint, token_ids(deepseek, f"b{V32.eos}"))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strnig"}, "response_format, schema at /: unknown type 'strnig'"),
        ({"enum": []}, "no answer can satisfy it"),
        (
            {"properties": {"a": {"$ref": "#/$defs/no"}}},
            "response_format, schema at /properties/a: .* points to nothing",
        ),
        ({"enum": ["<think>"]}, "which the model cannot write"),
    ],
)
def test_a_schema_that_no_answer_fits_is_refused(
    deepseek: ConstraintCompiler, schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedSchemaError, match=message):
        deepseek.compile([], "none", "chat", answer_schema=schema)
