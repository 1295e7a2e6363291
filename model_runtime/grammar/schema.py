"""What a grammar can enforce of a tool's JSON Schema: schema in, shape out; no grammar syntax, no tokens here.

A shape says which JSON values are allowed, in terms that a context-free grammar can express. What a grammar cannot
express (string lengths and patterns, unique items, ...) is dropped and reported in `loosened`: every valid value stays
allowed, and the validator has the last word. Where a schema leaves open what it means, the narrower reading is taken:

    keywords of one type without `type`    that type          {"properties": {...}} is an object
    `properties` without `additionalProperties`   no others   a model must not invent parameters
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import reduce
from typing import Any
from urllib.parse import unquote

from v32.model_runtime.errors import UnsupportedSchemaError

MAX_COUNTED_ITEMS = 64
MAX_ALTERNATIVES = 256
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class AnyValue:
    """Every JSON value."""


@dataclass(frozen=True, slots=True)
class Literals:
    """One of some values, each as canonical JSON text."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """Every string."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number between inclusive or exclusive bounds."""

    is_integer: bool = False
    minimum: Decimal | None = None
    maximum: Decimal | None = None
    excludes_minimum: bool = False
    excludes_maximum: bool = False


@dataclass(frozen=True, slots=True)
class Array:
    """`prefix` by position, then any number of `items` (None: nothing more), `min_items` to `max_items` in all."""

    prefix: tuple[Shape, ...] = ()
    items: Shape | None = None
    min_items: int = 0
    max_items: int | None = None


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    shape: Shape
    is_required: bool


@dataclass(frozen=True, slots=True)
class Object:
    """Members in the declared order, then any others of shape `extra` (None: no others)."""

    members: tuple[Member, ...] = ()
    extra: Shape | None = None


@dataclass(frozen=True, slots=True)
class Either:
    """One of several shapes; none at all if empty."""

    options: tuple[Shape, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """The shape that stands in the definitions under `pointer`; what makes recursive schemas finite."""

    pointer: str


Shape = AnyValue | Literals | Text | Number | Array | Object | Either | Reference
NOTHING = Either()


@dataclass(frozen=True)
class SchemaShape:
    """What one schema allows. `loosened` lists `path: keyword` for all that only the validator checks."""

    options: tuple[Shape, ...]
    definitions: Mapping[str, Shape] = field(default_factory=dict)
    loosened: tuple[str, ...] = ()

    def alternatives(self, shape: Shape) -> list[Shape]:
        return list(_alternatives(shape, self.definitions, set()))


@dataclass(frozen=True)
class ArgumentsShape(SchemaShape):
    """The arguments of one tool: an object in any case."""

    options: tuple[Object, ...]


def read_arguments(tool: str, schema: Mapping[str, Any]) -> ArgumentsShape:
    """The shape of a tool's arguments; `UnsupportedSchemaError` if no call of the tool could be written."""
    reader = _Reader(f"tool {tool!r}", schema)
    top = dict(schema)
    if not top.keys() & (_OPEN | {"properties"}):
        top.setdefault("properties", {})
    shape = reader.read(top, "")
    options = list(_alternatives(shape, reader.definitions, set()))
    objects = tuple(Object() if isinstance(option, AnyValue) else option for option in options)
    if not objects or not all(isinstance(option, Object) for option in objects):
        raise reader.error("", "the arguments of a tool are an object; let the schema be of type object")
    return ArgumentsShape(objects, reader.definitions, tuple(dict.fromkeys(reader.loosened)))  # type: ignore[arg-type]


def read_answer(schema: Mapping[str, Any]) -> SchemaShape:
    """The shape of an answer in JSON; `UnsupportedSchemaError` if none could be written."""
    reader = _Reader("response_format", schema)
    options = tuple(_alternatives(reader.read(schema, ""), reader.definitions, set()))
    if not options:
        raise reader.error("", "no answer can satisfy it; loosen the schema")
    return SchemaShape(options, reader.definitions, tuple(dict.fromkeys(reader.loosened)))


def canonical_json(value: Any) -> str:
    """JSON text as the model's encoder writes it."""
    return json.dumps(value, ensure_ascii=False)


def _alternatives(shape: Shape, definitions: Mapping[str, Shape], seen: set[str]) -> Iterator[Shape]:
    if isinstance(shape, Either):
        for option in shape.options:
            yield from _alternatives(option, definitions, seen)
    elif not isinstance(shape, Reference):
        yield shape
    elif shape.pointer not in seen:
        yield from _alternatives(definitions[shape.pointer], definitions, seen | {shape.pointer})


_OBJECT_LOOSE = frozenset(
    {"patternProperties", "propertyNames", "minProperties", "maxProperties"}
    | {"dependentRequired", "dependentSchemas", "dependencies"}
)
_ARRAY_LOOSE = frozenset({"uniqueItems", "contains", "minContains", "maxContains"})
_NUMBER_LOOSE = frozenset({"multipleOf"})
_STRING_LOOSE = frozenset(
    {"minLength", "maxLength", "pattern", "format", "contentEncoding", "contentMediaType", "contentSchema"}
)
_LOOSE = {
    "object": _OBJECT_LOOSE,
    "array": _ARRAY_LOOSE,
    "number": _NUMBER_LOOSE,
    "integer": _NUMBER_LOOSE,
    "string": _STRING_LOOSE,
}
_OPEN = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties"})
_TYPE_KEYWORDS = {
    "object": _OBJECT_LOOSE | _OPEN | {"properties", "required"},
    "array": _ARRAY_LOOSE | {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "unevaluatedItems"},
    "number": _NUMBER_LOOSE | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "string": _STRING_LOOSE,
}
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "nullable", "$comment"}
    | {"$schema", "$id", "$anchor", "$defs", "definitions", "$vocabulary"}
)
_LOOSE_ANYWHERE = ("not", "if", "then", "else", "$dynamicRef")
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")


class _Reader:
    """Reads one schema; gathers the definitions it refers to and what it had to loosen."""

    def __init__(self, owner: str, root: Mapping[str, Any]) -> None:
        self.owner = owner
        self.root = root
        self.definitions: dict[str, Shape] = {}
        self.recursive: set[str] = set()
        """Names of definitions that turned up within themselves."""
        self.loosened: list[str] = []

    def error(self, path: str, reason: str) -> UnsupportedSchemaError:
        return UnsupportedSchemaError(f"{self.owner}, schema at {path or '/'}: {reason}")

    def loosen(self, path: str, keyword: str) -> None:
        self.loosened.append(f"{path or '/'}: {keyword}")

    def read(self, schema: Any, path: str) -> Shape:
        if schema is True:
            return AnyValue()
        if schema is False:
            return NOTHING
        return self.read_once(schema, path) if _merges_reference(schema) else self.read_one(schema, path)

    def read_once(self, schema: Mapping[str, Any], path: str) -> Shape:
        """A schema that would have itself within itself without end, were it not named."""
        name = canonical_json(schema)
        if name in self.definitions:
            self.recursive.add(name)
            return Reference(name)
        self.definitions[name] = NOTHING
        shape = self.read_one(schema, path)
        if name not in self.recursive:
            del self.definitions[name]
            return shape
        self.definitions[name] = shape
        return Reference(name)

    def read_one(self, schema: Any, path: str) -> Shape:
        merged = self.flatten(schema, path)
        if merged is False:
            return NOTHING
        if "$ref" in merged:
            return self.reference(merged["$ref"], path)
        for keyword in _LOOSE_ANYWHERE:
            if keyword in merged:
                self.loosen(path, keyword)
        if "anyOf" in merged:
            rest = {key: value for key, value in merged.items() if key != "anyOf"}
            options = [{"allOf": [rest, option]} if rest else option for option in merged["anyOf"]]
            return either([self.read(option, path) for option in options])
        types = self.types(merged, path)
        if "enum" in merged:
            allowed = [value for value in merged["enum"] if types is None or _is_any_of(value, types)]
            return Literals(tuple(dict.fromkeys(map(canonical_json, allowed)))) if allowed else NOTHING
        if types is None:
            return AnyValue()
        return either([self.read_type(name, merged, path) for name in types])

    def reference(self, pointer: str, path: str) -> Shape:
        target = self.resolve(pointer, path)
        if target is True:
            return AnyValue()
        if pointer not in self.definitions:
            self.definitions[pointer] = NOTHING
            self.definitions[pointer] = self.read(target, pointer)
        return Reference(pointer)

    def resolve(self, pointer: Any, path: str) -> Any:
        """The schema a `$ref` points to; True, reported, where it lies outside this document."""
        if not isinstance(pointer, str):
            raise self.error(path, f"$ref is {pointer!r}; it must be a string")
        if not pointer.startswith("#"):
            self.loosen(path, f"$ref {pointer}")
            return True
        target: Any = self.root
        for step in pointer[1:].split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, Sequence) and not isinstance(target, str) and key.isdigit():
                target = target[int(key)] if int(key) < len(target) else None
            else:
                target = target.get(key) if isinstance(target, Mapping) else None
            if target is None:
                break
        if target is None or (pointer != "#" and not pointer.startswith("#/")):
            raise self.error(path, f"$ref {pointer!r} points to nothing; define it under $defs")
        return target

    def flatten(self, schema: Any, path: str, depth: int = 0) -> dict[str, Any] | Any:
        """One dict without allOf, const and oneOf, or False; a `$ref` stays only where it stands alone."""
        if isinstance(schema, bool):
            return {} if schema else False
        if not isinstance(schema, Mapping):
            raise self.error(path, f"{schema!r} is no schema; a schema is an object, true or false")
        if depth > MAX_DEPTH:
            raise self.error(path, "allOf and $ref lead around in a circle")
        own = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
        parts = list(own.pop("allOf", ()))
        if "$ref" in own and (len(own) > 1 or parts or depth):
            parts.append(self.resolve(own.pop("$ref"), path))
        if "const" in own:
            parts.append({"enum": [own.pop("const")]})
        if "oneOf" in own:
            if not self.are_disjoint(own["oneOf"]):
                self.loosen(path, "oneOf")
            parts.append({"anyOf": own.pop("oneOf")})
        flat = [self.flatten(part, path, depth + 1) for part in parts]
        return reduce(lambda left, right: self.merge(left, right, path), flat, own)

    def are_disjoint(self, options: Sequence[Any]) -> bool:
        """Whether no value can match two of the options, as far as types and enums tell."""
        seen: set[str] = set()
        for option in options:
            values = [option["const"]] if isinstance(option, Mapping) and "const" in option else None
            values = option.get("enum", values) if isinstance(option, Mapping) else None
            kinds = option.get("type") if isinstance(option, Mapping) else None
            if values is not None:
                marks = {canonical_json(value) for value in values} | {f"{_type_of(value)} " for value in values}
            elif kinds is not None:
                names = [kinds] if isinstance(kinds, str) else list(kinds)
                marks = {f"{name} " for name in names} | ({"integer "} if "number" in names else set())
            else:
                return False
            plain = {mark for mark in marks if not mark.endswith(" ")} or marks
            if plain & seen:
                return False
            seen |= marks
        return True

    def merge(self, left: Any, right: Any, path: str) -> Any:
        """The conjunction of two flat schemas."""
        if left is False or right is False:
            return False
        left, right = _close(left, right), _close(right, left)
        merged = dict(left)
        for key, value in right.items():
            merged[key] = self.both(key, left[key], value, path) if key in left else value
        if "$ref" in merged and len(merged) > 1:
            return self.flatten(merged, path, 1)
        return False if merged.get("type") == [] or merged.get("enum") == [] else merged

    def both(self, key: str, left: Any, right: Any, path: str) -> Any:
        if left == right:
            return left
        match key:
            case "type":
                names, others = _as_list(left), _as_list(right)
                kept = [name for name in names if name in others or (name == "integer" and "number" in others)]
                return kept + [name for name in others if name == "integer" and "number" in names and name not in kept]
            case "enum":
                texts = {canonical_json(value) for value in right}
                return [value for value in left if canonical_json(value) in texts]
            case "properties":
                shared = {name: {"allOf": [left[name], right[name]]} for name in left if name in right}
                return {**left, **right, **shared}
            case "required":
                return list(dict.fromkeys([*left, *right]))
            case "minimum" | "exclusiveMinimum" | "minItems" | "minLength" | "minProperties":
                return max(left, right)
            case "maximum" | "exclusiveMaximum" | "maxItems" | "maxLength" | "maxProperties":
                return min(left, right)
            case "anyOf":
                if len(left) * len(right) > MAX_ALTERNATIVES:
                    self.loosen(path, "anyOf")
                    return left
                return [{"allOf": [a, b]} for a in left for b in right]
            case "items" | "additionalProperties" | "unevaluatedProperties" | "unevaluatedItems":
                return {"allOf": [left, right]}
            case "prefixItems" if len(left) == len(right):
                return [{"allOf": [a, b]} for a, b in zip(left, right)]
            case "$ref":
                return self.merge(self.flatten({"$ref": left}, path, 1), self.flatten({"$ref": right}, path, 1), path)
        self.loosen(path, key)
        return left

    def types(self, schema: Mapping[str, Any], path: str) -> list[str] | None:
        """The types a schema allows; None: all of them."""
        if "type" not in schema:
            return [name for name, words in _TYPE_KEYWORDS.items() if words & schema.keys()] or None
        names = _as_list(schema["type"])
        for name in names:
            if name not in _TYPES:
                raise self.error(path, f"unknown type {name!r}; known: {', '.join(_TYPES)}")
        return [name for name in names if not (name == "integer" and "number" in names)]

    def read_type(self, name: str, schema: Mapping[str, Any], path: str) -> Shape:
        for keyword in sorted(_LOOSE.get(name, frozenset()) & schema.keys()):
            if schema[keyword] not in (False, 0, {}, []):
                self.loosen(path, keyword)
        match name:
            case "string":
                return Text()
            case "boolean":
                return Literals(("true", "false"))
            case "null":
                return Literals(("null",))
            case "array":
                return self.read_array(schema, path)
            case "object":
                return self.read_object(schema, path)
        return self.read_number(name == "integer", schema, path)

    def read_number(self, is_integer: bool, schema: Mapping[str, Any], path: str) -> Shape:
        low = [
            (_decimal(schema[key]), key == "exclusiveMinimum")
            for key in _present(schema, "minimum", "exclusiveMinimum")
        ]
        high = [
            (-_decimal(schema[key]), key == "exclusiveMaximum")
            for key in _present(schema, "maximum", "exclusiveMaximum")
        ]
        minimum, excludes_minimum = max(low, default=(None, False))
        negative, excludes_maximum = max(high, default=(None, False))
        maximum = None if negative is None else -negative
        return Number(is_integer, minimum, maximum, excludes_minimum, excludes_maximum)

    def read_array(self, schema: Mapping[str, Any], path: str) -> Shape:
        items: Any = schema.get("items", True)
        prefix: Sequence[Any] = schema.get("prefixItems", ())
        if isinstance(items, Sequence):  # as drafts before 2020-12 write a tuple
            prefix, items = items, schema.get("additionalItems", True)
        if "items" not in schema and "unevaluatedItems" in schema:
            items = schema["unevaluatedItems"]
        shapes = [self.read(item, f"{path}/prefixItems/{index}") for index, item in enumerate(prefix)]
        rest: Shape | None = self.read(items, f"{path}/items")
        if NOTHING in shapes:
            shapes, rest = shapes[: shapes.index(NOTHING)], NOTHING
        rest = None if rest == NOTHING else rest
        minimum, maximum = schema.get("minItems", 0), schema.get("maxItems")
        if rest is None:
            maximum = min(len(shapes), len(shapes) if maximum is None else maximum)
        if maximum is not None and maximum < minimum:
            return NOTHING
        if minimum > MAX_COUNTED_ITEMS:
            self.loosen(path, "minItems")
        if maximum is not None and maximum > MAX_COUNTED_ITEMS:
            self.loosen(path, "maxItems")
            maximum = None
        if maximum is not None:
            shapes = shapes[:maximum]
        return Array(tuple(shapes), rest, min(minimum, MAX_COUNTED_ITEMS), maximum)

    def read_object(self, schema: Mapping[str, Any], path: str) -> Shape:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = schema.get("required", ())
        others = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
        if schema.get("patternProperties"):
            others = True
        if others is None:
            others = "properties" not in schema
        extra = self.read(others, f"{path}/additionalProperties")
        members = []
        for name in [*properties, *(name for name in required if name not in properties)]:
            inner = f"{path}/properties/{name}"
            shape = self.read(properties[name], inner) if name in properties else extra
            if shape != NOTHING:
                members.append(Member(name, shape, name in required))
            elif name in required:
                return NOTHING
        return Object(tuple(members), None if extra == NOTHING else extra)


def _merges_reference(schema: Any) -> bool:
    """Whether a `$ref` stands beside other conditions."""
    if not isinstance(schema, Mapping):
        return False
    parts = [part for part in schema.get("allOf", ()) if isinstance(part, Mapping)]
    has_more = len(schema.keys() - _ANNOTATIONS) > 1
    return ("$ref" in schema and has_more) or any("$ref" in part or _merges_reference(part) for part in parts)


def either(options: Sequence[Shape]) -> Shape:
    """The union of shapes, as flat as it can be."""
    flat: dict[Shape, None] = {}
    for option in options:
        flat.update(dict.fromkeys(option.options if isinstance(option, Either) else (option,)))
    if AnyValue() in flat:
        return AnyValue()
    return next(iter(flat)) if len(flat) == 1 else Either(tuple(flat))


def _close(schema: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """`schema` without the properties that `other` forbids by `additionalProperties: false`."""
    if other.get("additionalProperties") is not False or "properties" not in schema:
        return schema
    allowed = other.get("properties", {})
    kept = {name: value if name in allowed else False for name, value in schema["properties"].items()}
    return {**schema, "properties": kept}


def _as_list(names: Any) -> list[Any]:
    return list(names) if isinstance(names, (list, tuple)) else [names]


def _present(schema: Mapping[str, Any], *keys: str) -> list[str]:
    return [key for key in keys if isinstance(schema.get(key), (int, float)) and not isinstance(schema[key], bool)]


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value))


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def _is_any_of(value: Any, types: Sequence[str]) -> bool:
    name = _type_of(value)
    if name == "number" and "integer" in types and float(value).is_integer():
        return True
    return name in types or (name == "integer" and "number" in types)
