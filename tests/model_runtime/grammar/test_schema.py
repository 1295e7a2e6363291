"""Which arguments a schema lets through: everything valid, and of what is invalid all that a grammar can express."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from v32.model_runtime.grammar.schema import read_arguments

from .conftest import tool

TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
    "required": ["v"],
}
CHAIN = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/chain"}, {"type": "null"}]}},
    "required": ["v", "next"],
}
KNOT = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/knot", "required": ["v"]}},
}
CASES: list[tuple[str, Any, list[Any], list[Any]]] = [
    ("string", {"type": "string"}, ["", "x\n", 'q"\\'], [1, None, ["x"]]),
    ("integer", {"type": "integer"}, [0, -7, 10**20], ["1", 1.5, True]),
    (
        "number",
        {"type": "number"},
        [0, -0.5, 1e100, 1e-7, 5e-324, 1.7e308, 1.79e308, 1.797693e308, 1.7976931348623157e308, 1.0, -0.0],
        ["1", None],
    ),
    ("boolean", {"type": "boolean"}, [True, False], ["true", 0]),
    ("null", {"type": "null"}, [None], ["null", 0]),
    ("enum", {"enum": ["a", "b\nc", 3, None, [1, {"x": 2.5}]]}, ["a", "b\nc", 3, None, [1, {"x": 2.5}]], ["c", 4, [1]]),
    ("typed enum", {"type": "string", "enum": ["a", 1]}, ["a"], [1]),
    ("const", {"const": "only"}, ["only"], ["other"]),
    ("nullable", {"type": ["string", "null"]}, ["x", None, "null"], [1]),
    ("any", {}, ["x", 1, None, True, [1, "a"], {"k": [{}]}], []),
    (
        "anyOf",
        {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]},
        [1, [], ["a"]],
        ["a", [1]],
    ),
    ("oneOf", {"oneOf": [{"const": 1}, {"type": "string"}]}, [1, "x"], [2]),
    (
        "allOf",
        {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {"const": 1}}}]},
        [{"a": 1}, {"a": 2, "b": 1}],
        [{}, {"a": "x"}, {"a": 1, "b": 2}],
    ),
    (
        "array",
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        [[1, 2], [1, 2, 3]],
        [[], [1], [1] * 4],
    ),
    ("no items", {"type": "array", "maxItems": 0}, [[]], [[1]]),
    (
        "tuple",
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 1},
        [["a"], ["a", 1]],
        [[], [1], ["a", 1, 2], ["a", "b"]],
    ),
    (
        "tuple and more",
        {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "boolean"}, "maxItems": 3},
        [[], ["a"], ["a", True, False]],
        [[True], ["a", 1], ["a", True, True, True]],
    ),
    (
        "map",
        {"type": "object", "additionalProperties": {"type": "integer"}},
        [{}, {"any key": 1, 'q"\n': 2}],
        [{"a": "b"}],
    ),
    ("free object", {"type": "object"}, [{}, {"a": {"b": [None]}}], [[], "x"]),
    ("closed", {"type": "object", "properties": {"a": {}}, "additionalProperties": False}, [{}, {"a": 1}], [{"b": 1}]),
    (
        "others",
        {
            "properties": {"a": {"type": "string"}, "ab": {"type": "string"}},
            "additionalProperties": {"type": "integer"},
        },
        [{"a": "x", "ab": "y", "abc": 1, "b": 2}, {"b": 1}],
        [{"a": 1}, {"b": "x"}, {"ab": 1}],
    ),
    (
        "optional",
        {"properties": {n: {"type": "integer"} for n in "abc"}, "required": ["b"]},
        [{"b": 1}, {"a": 1, "b": 1, "c": 1}, {"b": 1, "c": 1}],
        [{}, {"a": 1, "c": 1}],
    ),
    (
        "undeclared but required",
        {"type": "object", "properties": {}, "required": ["z"], "additionalProperties": True},
        [{"z": 1}, {"z": 1, "y": 2}],
        [{}, {"y": 1}],
    ),
    (
        "recursive",
        {"$ref": "#/$defs/tree"},
        [{"v": 1}, {"v": 1, "kids": [{"v": 2, "kids": []}]}],
        [{}, {"v": 1, "kids": [{}]}],
    ),
    ("ref and more", {"$ref": "#/$defs/tree", "required": ["kids"]}, [{"v": 1, "kids": []}], [{"v": 1}]),
    (
        "recursive in anyOf",
        {"$ref": "#/$defs/chain"},
        [{"v": 1, "next": {"v": 2, "next": {"v": 3, "next": None}}}],
        [{"v": 1}, {"v": 1, "next": {"v": 2}}, {"v": 1, "next": {"v": 2, "next": 3}}],
    ),
    (
        "recursive and more",
        {"$ref": "#/$defs/knot", "required": ["v"]},
        [{"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}],
        [{}, {"v": 1, "next": {}}, {"v": 1, "next": {"v": 2, "next": {}}}],
    ),
    ("ref in anyOf", {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}, [None, {"v": 1}], [1, {}]),
]


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize(("name", "schema", "valid", "invalid"), CASES, ids=[case[0] for case in CASES])
def test_arguments(
    accepted: Callable[..., bool], name: str, schema: Any, valid: list[Any], invalid: list[Any], is_nested: bool
) -> None:
    inner = {"type": "object", "properties": {"inner": schema}, "required": ["inner"]} if is_nested else schema
    spec = tool({"value": inner}, ["value"], **{"$defs": {"tree": TREE, "chain": CHAIN, "knot": KNOT}})
    for values, expected in ((valid, True), (invalid, False)):
        for value in values:
            argument = {"inner": value} if is_nested else value
            assert accepted({"value": argument}, spec) is expected, value


def test_top_level_alternatives(accepted: Callable[..., bool]) -> None:
    options = [
        {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"properties": {"b": {"type": "string"}}, "required": ["b"]},
    ]
    spec = tool({"c": {"type": "boolean"}}, anyOf=options)
    assert accepted({"c": True, "a": 1}, spec)
    assert accepted({"b": "x"}, spec)
    assert not accepted({"c": True}, spec)
    assert not accepted({"a": 1, "b": "x"}, spec)


def test_other_parameters_at_the_top(accepted: Callable[..., bool]) -> None:
    spec = tool({"a": {"type": "string"}}, additionalProperties={"type": "integer"})
    assert accepted({"a": "x", "other": 1, "à la": 2}, spec)
    assert accepted({"other": 1}, spec)
    assert not accepted({"a": 1}, spec)
    assert not accepted({"other": "x"}, spec)


@pytest.mark.parametrize(
    ("schema", "loosened"),
    [
        ({"type": "string", "minLength": 1, "pattern": "^a"}, ["minLength", "pattern"]),
        ({"type": "integer", "multipleOf": 5}, ["multipleOf"]),
        ({"type": "array", "uniqueItems": True, "maxItems": 10_000}, ["maxItems", "uniqueItems"]),
        ({"type": "array", "uniqueItems": False}, []),
        ({"type": "object", "patternProperties": {"^x": {}}}, ["patternProperties"]),
        ({"type": "integer", "not": {"const": 3}}, ["not"]),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ["oneOf"]),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, []),
        ({"$ref": "https://example.org/schema.json"}, ["$ref https://example.org/schema.json"]),
        ({"type": "string", "title": "T", "description": "d", "default": "x"}, []),
    ],
)
def test_what_is_left_to_the_validator_is_reported(schema: Any, loosened: list[str]) -> None:
    shape = read_arguments("f", tool({"a": schema}).parameters)
    assert sorted(shape.loosened) == sorted(f"/properties/a: {keyword}" for keyword in loosened)


names = st.sampled_from(["a", "b", "ab", "x y", "é", "q'"])
scalars = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "maxLength": 3},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": ["integer", "null"]},
        {"enum": ["a", "b", 1, None]},
        {"type": "integer", "minimum": -5, "maximum": 12},
        {},
    ]
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    def build(properties: dict[str, Any], picks: list[bool], others: Any) -> dict[str, Any]:
        required = [name for name, pick in zip(properties, picks) if pick]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": others}

    return st.builds(
        build,
        st.dictionaries(names, inner, max_size=4),
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.sampled_from([False, False, {"type": "integer"}]),
    )


schemas = st.recursive(
    scalars,
    lambda inner: (
        objects(inner)
        | st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 4))
        | st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=8,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def values(schema: Any) -> st.SearchStrategy[Any]:
    """Values that are valid, members in the declared order."""
    if "anyOf" in schema:
        return st.one_of(*map(values, schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return st.one_of(*(values({**schema, "type": name}) for name in kind))
    match kind:
        case "string":
            return st.text(max_size=schema.get("maxLength", 12))
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case "number":
            return st.floats(allow_nan=False, allow_infinity=False) | st.integers()
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            return st.lists(values(schema["items"]), max_size=schema["maxItems"])
        case "object":
            return object_values(schema)
    return json_values


@st.composite
def object_values(draw: st.DrawFn, schema: Any) -> dict[str, Any]:
    value = {
        name: draw(values(inner))
        for name, inner in schema["properties"].items()
        if name in schema["required"] or draw(st.booleans())
    }
    if schema["additionalProperties"]:
        others = draw(st.dictionaries(st.sampled_from(["z", "abc", "A"]), st.integers(), max_size=2))
        value |= others
    return value


@settings(max_examples=settings.default.max_examples // 10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_valid_call_can_be_written(accepted: Callable[..., bool], data: st.DataObject) -> None:
    schema = data.draw(objects(schemas))
    spec = tool(schema["properties"], schema["required"], additionalProperties=schema["additionalProperties"])
    arguments = data.draw(object_values(schema))
    jsonschema.validate(arguments, dict(spec.parameters))
    assert accepted(arguments, spec)
