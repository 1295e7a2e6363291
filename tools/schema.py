"""Typed function in, JSON Schema (2020-12) of its arguments out; and JSON arguments back into annotated types.

The schema is compact and its key order is part of the promise, because models are trained on it:

    {"type": "object", "properties": {NAME: {"type", "description", …}}, "required": […], "additionalProperties": false}

`required` is left out when empty, `default` stands last, `$defs` after everything. No titles.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from v32.tools.docstring import Docstring
from v32.tools.errors import ToolDefinitionError
from v32.tools.tool import ToolContext, ToolError

if TYPE_CHECKING:
    import pydantic

_KEY_ORDER = (
    "$schema", "$id", "$anchor", "$ref", "type", "anyOf", "oneOf", "allOf", "not", "description", "enum", "const",
    "format", "pattern", "minLength", "maxLength", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum",
    "multipleOf", "prefixItems", "items", "minItems", "maxItems", "uniqueItems", "properties", "patternProperties",
    "propertyNames", "required", "minProperties", "maxProperties", "additionalProperties",
)  # fmt: skip
_LAST = ("default", "examples", "$defs")
_SUBSCHEMA = {"items", "not", "contains", "additionalProperties", "propertyNames", "if", "then", "else"}
_SUBSCHEMA_LIST = {"anyOf", "oneOf", "allOf", "prefixItems"}
_SUBSCHEMA_MAP = {"properties", "patternProperties", "$defs", "dependentSchemas"}
_NOISE = {"title", "discriminator"}
_FIELD_MARKS = (typing.Required, typing.NotRequired)


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a function: their schema, and the way from JSON back to Python."""

    schema: dict[str, Any]
    _signature: inspect.Signature
    _model: type[pydantic.BaseModel]
    _fields: dict[str, str]
    _context_name: str | None

    def bind(self, arguments: Mapping[str, Any], context: ToolContext) -> inspect.BoundArguments:
        """Raises `ToolError` where a type's own checks refuse what the schema let pass."""
        from pydantic import ValidationError

        try:
            instance = self._model.model_validate(dict(arguments))
        except ValidationError as error:
            raise ToolError("invalid arguments: " + "; ".join(_problems(error, self._fields))) from None
        given = {self._fields[field]: getattr(instance, field) for field in instance.model_fields_set}
        if self._context_name is not None:
            given[self._context_name] = context
        bound = inspect.BoundArguments(self._signature, given)
        bound.apply_defaults()
        return bound


def read_signature(
    function: Callable[..., Any], name: str, doc: Docstring, namespace: Mapping[str, Any] | None = None
) -> Signature:
    """The signature of `function` as a tool; a parameter annotated `ToolContext` is filled in by the runtime.

    `namespace` helps to resolve annotations that are strings. Raises `ToolDefinitionError`.
    """
    signature = inspect.signature(function)
    hints = _type_hints(function, name, namespace or {})
    context_name = None
    parameters: dict[str, tuple[Any, inspect.Parameter]] = {}
    for parameter in signature.parameters.values():
        annotation = _annotation(parameter, hints, name)
        if annotation in (ToolContext, ToolContext | None):
            context_name = parameter.name
        else:
            parameters[parameter.name] = _with_modern_typed_dicts(annotation), parameter
    model, fields = _arguments_model(name, parameters)
    schema = _parameters_schema(name, model, parameters, doc)
    return Signature(schema, signature, model, fields, context_name)


def canonical(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema without noise, in the fixed key order; a definition used once stands where it is used."""
    return _in_order(_inlined(_without_noise(schema)))


def _type_hints(function: Callable[..., Any], name: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    target = function
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    if not (inspect.isroutine(target) or inspect.isclass(target)):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target, localns=dict(namespace), include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise ToolDefinitionError(
            f"the annotations of tool {name!r} cannot be resolved: {error}; "
            "define the types it names at module level or beside it"
        ) from error


def _annotation(parameter: inspect.Parameter, hints: Mapping[str, Any], tool_name: str) -> Any:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        raise ToolDefinitionError(
            f"tool {tool_name!r} takes {stars}{parameter.name}, which has no schema; name its parameters or use RawTool"
        )
    if parameter.name not in hints and parameter.name == "self":
        raise ToolDefinitionError(
            f"tool {tool_name!r} is a method of no object; offer that of one: `object.{tool_name}`"
        )
    if parameter.name not in hints:
        raise ToolDefinitionError(
            f"parameter {parameter.name!r} of tool {tool_name!r} has no annotation; write `{parameter.name}: str` "
            "(or another type), or use RawTool"
        )
    return hints[parameter.name]


def _arguments_model(
    name: str, parameters: Mapping[str, tuple[Any, inspect.Parameter]]
) -> tuple[type[pydantic.BaseModel], dict[str, str]]:
    """A pydantic model with one field per parameter, under neutral names: `schema`, `copy` or `_x` are fine names."""
    from pydantic import BaseModel, ConfigDict, Field, create_model

    fields: dict[str, str] = {}
    definitions: dict[str, Any] = {}
    for i, (parameter_name, (annotation, parameter)) in enumerate(parameters.items()):
        fields[f"p{i}"] = parameter_name
        is_required = parameter.default is parameter.empty
        field = Field(alias=parameter_name) if is_required else Field(alias=parameter_name, default_factory=_unused)
        definitions[f"p{i}"] = (annotation, field)
    config = ConfigDict(extra="forbid", use_enum_values=False)
    try:
        model: type[BaseModel] = create_model(f"{name}_arguments", __config__=config, **definitions)
        return model, fields
    except Exception as error:
        raise ToolDefinitionError(f"the parameters of tool {name!r} have no schema: {_first_line(error)}") from error


def _unused() -> None:
    """Stands for a default: pydantic then takes the field as optional and leaves the default to the function."""


def _parameters_schema(
    name: str,
    model: type[pydantic.BaseModel],
    parameters: Mapping[str, tuple[Any, inspect.Parameter]],
    doc: Docstring,
) -> dict[str, Any]:
    try:
        schema = model.model_json_schema(by_alias=True)
    except Exception as error:
        raise ToolDefinitionError(f"the parameters of tool {name!r} have no schema: {_first_line(error)}") from error
    schema.pop("description", None)
    for parameter_name, (_, parameter) in parameters.items():
        described = schema["properties"][parameter_name]
        if text := doc.parameters.get(parameter_name):
            described.setdefault("description", text)
        if parameter.default is not parameter.empty:
            described.update(_default(parameter.default))
    schema.setdefault("properties", {})
    return canonical(schema)


def _default(value: Any) -> dict[str, Any]:
    """`{"default": …}` where the default is worth telling: it has a JSON form and is not None."""
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        plain = to_jsonable_python(value)
        json.dumps(plain, allow_nan=False)
    except (PydanticSerializationError, ValueError):
        return {}
    return {} if plain is None else {"default": plain}


def _with_modern_typed_dicts(annotation: Any, inside: frozenset[Any] = frozenset()) -> Any:
    """`typing.TypedDict` as `typing_extensions.TypedDict`, which pydantic asks for before Python 3.12."""
    if sys.version_info >= (3, 12):
        return annotation
    import typing_extensions

    if typing_extensions.is_typeddict(annotation):
        return annotation if annotation in inside else _modern_typed_dict(annotation, inside | {annotation})
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not arguments or origin is typing.Literal:
        return annotation
    modern = tuple(_with_modern_typed_dicts(argument, inside) for argument in arguments)
    if all(new is old for new, old in zip(modern, arguments, strict=True)):
        return annotation
    if origin is Annotated:
        return Annotated[(modern[0], *annotation.__metadata__)]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[modern]  # noqa: UP007
    return annotation.copy_with(modern) if hasattr(annotation, "copy_with") else origin[modern]


def _modern_typed_dict(annotation: Any, inside: frozenset[Any]) -> Any:
    import typing_extensions

    fields: dict[str, Any] = {}
    for key, hint in typing_extensions.get_type_hints(annotation, include_extras=True).items():
        # where annotations are strings, only the resolved hint knows of Required and NotRequired
        mark = get_origin(hint)
        modern = _with_modern_typed_dicts(get_args(hint)[0] if mark in _FIELD_MARKS else hint, inside)
        required = mark is typing.Required or (key in annotation.__required_keys__ and mark is not typing.NotRequired)
        fields[key] = typing_extensions.Required[modern] if required else typing_extensions.NotRequired[modern]
    make: Any = typing_extensions.TypedDict
    made = make(annotation.__name__, fields)
    made.__doc__ = annotation.__doc__
    return made


def _map_subschemas(schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The schema with `change` applied to its direct subschemas, wherever the vocabulary has one."""
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _SUBSCHEMA and isinstance(value, Mapping):
            out[key] = change(value)
        elif key in _SUBSCHEMA_LIST and isinstance(value, list):
            out[key] = [change(item) if isinstance(item, Mapping) else item for item in value]
        elif key in _SUBSCHEMA_MAP and isinstance(value, Mapping):
            out[key] = {name: change(item) if isinstance(item, Mapping) else item for name, item in value.items()}
        else:
            out[key] = value
    return out


def _without_noise(schema: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in schema.items() if key not in _NOISE}
    if kept.get("default", ...) is None:
        del kept["default"]
    if "properties" in kept:
        kept.setdefault("additionalProperties", False)
    return _map_subschemas(kept, _without_noise)


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Definitions that are used exactly once and do not contain themselves, put where they are used."""
    definitions: dict[str, Any] = dict(schema.get("$defs", {}))
    used = list(references(schema))
    single = {name for name in definitions if used.count(f"#/$defs/{name}") == 1}
    single -= {name for name in single if _reaches_itself(name, definitions)}

    def resolve(part: Mapping[str, Any]) -> dict[str, Any]:
        name = str(part.get("$ref", "")).removeprefix("#/$defs/")
        if name in single:
            part = {**definitions[name], **{key: value for key, value in part.items() if key != "$ref"}}
        return _map_subschemas(part, resolve)

    kept = {name: definition for name, definition in definitions.items() if name not in single}
    bare = {key: value for key, value in schema.items() if key != "$defs"}
    return resolve({**bare, "$defs": kept} if kept else bare)


def references(node: Any) -> Iterator[str]:
    """Every `$ref` of a schema."""
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def _reaches_itself(name: str, definitions: Mapping[str, Any]) -> bool:
    seen: set[str] = set()
    todo = [name]
    while todo:
        for reference in references(definitions.get(todo.pop(), {})):
            target = reference.removeprefix("#/$defs/")
            if target == name:
                return True
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return False


def _in_order(schema: Mapping[str, Any]) -> dict[str, Any]:
    first = [key for key in _KEY_ORDER if key in schema]
    last = [key for key in _LAST if key in schema]
    other = sorted(schema.keys() - set(first) - set(last))
    return _map_subschemas({key: schema[key] for key in (*first, *other, *last)}, _in_order)


def _problems(error: pydantic.ValidationError, fields: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        head, *rest = problem["loc"] or ("",)
        path = "$." + fields.get(str(head), str(head))
        path += "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
        yield f"{path}: {problem['msg']}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
