# ruff: noqa: UP007, UP045 — both spellings of unions are tested
from __future__ import annotations

import enum
import json
import typing
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from math import inf
from typing import Annotated, Any, Literal, Optional, Union

import anyio
import pytest
import typing_extensions
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from v32.tools import FunctionTool, ToolContext, ToolDefinitionError, ToolError, tool


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: float
    y: float = 0.0


@dataclass
class Shape:
    name: str
    corners: list[Point] = field(default_factory=list)
    colour: Colour = Colour.RED


class Address(BaseModel):
    street: str
    number: int = Field(ge=1, description="House number.")
    title: str = ""


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Movie(typing.TypedDict):
    name: str
    year: typing.NotRequired[int]


class Film(typing_extensions.TypedDict, total=False):
    name: str
    made_by: list[Movie]


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    return dict(FunctionTool(function, name="f").parameters)


def property_of(annotation: Any) -> Any:
    def f(x: Any) -> None: ...

    f.__annotations__["x"] = annotation
    return schema_of(f)["properties"]["x"]


def test_the_compact_form_down_to_the_byte() -> None:
    @tool
    def population(city: str) -> int:
        """Number of inhabitants of a city.

        Args:
            city: Name of the city, in English.
        """
        return 0

    assert population.name == "population"
    assert population.description == "Number of inhabitants of a city."
    assert json.dumps(population.parameters, separators=(",", ":")) == (
        '{"type":"object","properties":{"city":{"type":"string","description":"Name of the city, in English."}},'
        '"required":["city"],"additionalProperties":false}'
    )


def test_without_parameters_nothing_is_required() -> None:
    def f() -> None: ...

    assert json.dumps(schema_of(f)) == '{"type": "object", "properties": {}, "additionalProperties": false}'


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (Any, {}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal["a"], {"type": "string", "const": "a"}),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Union[int, str], {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (list[list[int]], {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (Colour, {"type": "string", "enum": ["red", "blue"]}),
        (date, {"type": "string", "format": "date"}),
        (set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
        (
            tuple[int, str],
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        ),
        (Annotated[int, Field(ge=1, le=9)], {"type": "integer", "minimum": 1, "maximum": 9}),
    ],
    ids=str,
)
def test_annotations(annotation: Any, expected: dict[str, Any]) -> None:
    assert property_of(annotation) == expected


def test_structures_are_closed_and_stand_where_they_are_used() -> None:
    assert property_of(Shape) == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "corners": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 0.0}},
                    "required": ["x"],
                    "additionalProperties": False,
                },
            },
            "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
        },
        "required": ["name"],
        "additionalProperties": False,
    }


def test_a_property_named_title_is_not_noise() -> None:
    assert list(property_of(Address)["properties"]) == ["street", "number", "title"]


def test_typed_dicts_of_both_modules() -> None:
    movie = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "year": {"type": "integer"}},
        "required": ["name"],
        "additionalProperties": False,
    }
    assert property_of(Movie) == movie
    assert property_of(Optional[list[Movie]])["anyOf"][0]["items"] == movie


def test_recursive_types_keep_their_definition() -> None:
    def f(tree: Node) -> None: ...

    schema = schema_of(f)
    assert schema["properties"]["tree"] == {"$ref": "#/$defs/Node"}
    assert schema["$defs"]["Node"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"tree": {"value": 1, "children": [{"value": 2}]}})
    assert not validator.is_valid({"tree": {"value": 1, "children": [{"value": "2"}]}})


def test_types_used_twice_are_defined_once() -> None:
    def f(a: Point, b: Point) -> None: ...

    schema = schema_of(f)
    assert schema["properties"] == {"a": {"$ref": "#/$defs/Point"}, "b": {"$ref": "#/$defs/Point"}}
    assert list(schema["$defs"]) == ["Point"]


def test_defaults_make_optional_and_are_told_unless_none() -> None:
    def f(
        a: int, b: int = 3, c: str | None = None, d: Colour = Colour.BLUE, e: Any = object, g: float = inf
    ) -> None: ...

    schema = schema_of(f)
    assert schema["required"] == ["a"]
    defaults = {name: part["default"] for name, part in schema["properties"].items() if "default" in part}
    assert defaults == {"b": 3, "d": "blue"}


def test_a_description_in_the_annotation_wins_over_the_docstring() -> None:
    def f(a: Annotated[int, Field(description="From the annotation.")], b: int) -> None:
        """F.

        Args:
            a: From the docstring.
            b: From the docstring.
        """

    properties = schema_of(f)["properties"]
    assert properties["a"]["description"] == "From the annotation."
    assert properties["b"]["description"] == "From the docstring."


def test_key_order_is_the_same_everywhere() -> None:
    order = [
        "type",
        "anyOf",
        "description",
        "enum",
        "items",
        "properties",
        "required",
        "additionalProperties",
        "default",
    ]

    def check(schema: Any) -> None:
        if isinstance(schema, dict):
            known = [key for key in schema if key in order]
            if schema.get("type") == "object" or "anyOf" in schema:
                assert known == sorted(known, key=order.index)
            for value in schema.values():
                check(value)

    def f(a: Shape, b: Address, c: Film | None = None) -> None:
        """F."""

    check(schema_of(f))


def test_awkward_parameter_names_work() -> None:
    def f(schema: int, copy: int, model_config: int, self_: int, json: int = 1) -> int:
        return schema + copy + model_config + self_ + json

    made = FunctionTool(f, in_worker=False)
    assert list(made.parameters["properties"]) == ["schema", "copy", "model_config", "self_", "json"]
    arguments = {"schema": 1, "copy": 2, "model_config": 3, "self_": 4}
    assert anyio.run(made.call, arguments, ToolContext("c")).text == "11"


def test_arguments_arrive_as_annotated() -> None:
    seen: list[Any] = []

    @tool(in_worker=False)
    def f(
        shape: Shape, when: date, pair: tuple[int, str], many: set[int], movie: Movie, ratio: float, x: int | str, /
    ) -> None:
        seen.extend([shape, when, pair, many, movie, ratio, x])

    arguments = {
        "shape": {"name": "box", "corners": [{"x": 1}], "colour": "blue"},
        "when": "2025-12-01",
        "pair": [1, "a"],
        "many": [1, 2],
        "movie": {"name": "M"},
        "ratio": 2,
        "x": "7",
    }
    assert Draft202012Validator(f.parameters).is_valid(arguments)
    anyio.run(f.call, arguments, ToolContext("c"))
    box = Shape("box", [Point(1.0)], Colour.BLUE)
    assert seen == [box, date(2025, 12, 1), (1, "a"), {1, 2}, {"name": "M"}, 2.0, "7"]
    assert isinstance(seen[5], float)


def test_a_type_may_be_stricter_than_its_schema() -> None:
    from pydantic import AfterValidator

    def even(value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value

    def f(n: list[Annotated[int, AfterValidator(even)]]) -> None: ...

    made = FunctionTool(f)
    with pytest.raises(ToolError, match=r"\$\.n\[1\]: Value error, must be even"):
        anyio.run(made.call, {"n": [2, 3]}, ToolContext("c"))


def test_the_context_is_filled_in_and_not_offered() -> None:
    @tool(in_worker=False)
    def f(a: int, context: ToolContext) -> str:
        return f"{a} {context.call_id}"

    assert list(f.parameters["properties"]) == ["a"]
    assert anyio.run(f.call, {"a": 1}, ToolContext("c-7")).text == "1 c-7"


def test_an_optional_context_is_filled_in_too() -> None:
    @tool(in_worker=False)
    def f(a: int, context: ToolContext | None = None) -> str:
        return f"{a} {context.call_id if context else 'nobody'}"

    assert list(f.parameters["properties"]) == ["a"]
    assert anyio.run(f.call, {"a": 1}, ToolContext("c-7")).text == "1 c-7"


def test_a_partial_is_described_as_its_function() -> None:
    def scale(factor: int, value: int) -> int:
        """Multiply.

        Args:
            value: What to multiply.
        """
        return factor * value

    f = tool(name="double", in_worker=False)(partial(scale, 2))
    assert (f.description, f.parameters["properties"]["value"]["description"]) == ("Multiply.", "What to multiply.")
    assert list(f.parameters["properties"]) == ["value"]
    assert anyio.run(f.call, {"value": 4}, ToolContext("c")).text == "8"


def test_types_of_the_surrounding_function_resolve() -> None:
    class Local(BaseModel):
        n: int

    @tool(in_worker=False)
    def f(local: Local) -> int:
        return local.n

    assert anyio.run(f.call, {"local": {"n": 3}}, ToolContext("c")).text == "3"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tool(lambda_without_name), "has no name"),
        (lambda: tool(unannotated), "parameter 'x' of tool 'unannotated' has no annotation"),
        (lambda: tool(variadic), r"takes \*\*options, which has no schema"),
        (lambda: tool(unresolved), "cannot be resolved: name 'Nowhere'"),
        (lambda: tool(opaque), "the parameters of tool 'opaque' have no schema"),
        (lambda: tool(timeout=0)(untimed), "timeout of tool 'untimed' is 0"),
        (lambda: tool(yielding), "tool 'yielding' yields; a call has one result"),
        (lambda: tool(Unbound.method), "tool 'method' is a method of no object"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_by_name(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ToolDefinitionError, match=message):
        make()


lambda_without_name = lambda: None  # noqa: E731


def untimed() -> None: ...


def unannotated(x): ...  # type: ignore[no-untyped-def]


def variadic(**options: int) -> None: ...


async def yielding() -> AsyncIterator[int]:
    yield 1


class Unbound:
    def method(self, x: int) -> None: ...


def unresolved(x: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821


def opaque(x: threading_lock) -> None: ...


class threading_lock:
    pass


ANNOTATIONS = st.recursive(
    st.sampled_from([int, float, str, bool, None, Colour, Point, Address, Movie, date, Literal[1, "a"]]),
    lambda inner: st.one_of(
        inner.map(lambda a: list[a]),
        inner.map(lambda a: dict[str, a]),
        inner.map(Optional.__getitem__),
        st.tuples(inner, inner).map(lambda pair: Union[pair]),
        st.tuples(inner, inner).map(lambda pair: tuple[pair]),
    ),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(ANNOTATIONS, max_size=3))
def test_every_schema_is_one_and_has_no_noise(annotations: list[Any]) -> None:
    def f(*args: Any) -> None: ...

    import inspect

    parameters = [
        inspect.Parameter(f"p{i}", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
        for i, annotation in enumerate(annotations)
    ]
    f.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    f.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    schema = schema_of(f)
    Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    assert '"title": "P' not in json.dumps(schema)
    assert json.loads(json.dumps(schema)) == schema
