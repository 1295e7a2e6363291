"""The one validator of JSON that a model has written: a schema and a value in, what is wrong with it in words out.

Arguments of tools and structured answers are checked by it alike. Draft 2020-12; `$ref` leads into the schema itself
only, nothing is ever fetched; formats are checked. It takes no longer than `SECONDS`, whatever the schema: patterns may
backtrack and unions may branch without end, and the values come from a model.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from v32.tools.bounded import Clock, bounded_validator
from v32.tools.errors import ToolDefinitionError

if TYPE_CHECKING:
    from jsonschema import FormatChecker, ValidationError
    from referencing._core import Resolver

SECONDS = 1.0
MAX_PROBLEMS = 100

_JSON_TYPES = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null",
}  # fmt: skip
_EXAMPLES = {
    "date": "2026-01-31", "date-time": "2026-01-31T12:00:00Z", "time": "12:00:00Z", "duration": "P1DT2H30M",
    "email": "name@example.org", "uri": "https://example.org/path", "uuid": "123e4567-e89b-12d3-a456-426614174000",
}  # fmt: skip
_DURATION = re.compile(
    r"P(?=[0-9T])([0-9]+Y)?([0-9]+M)?([0-9]+W)?([0-9]+D)?"
    r"(T(?=[0-9])([0-9]+H)?([0-9]+M)?([0-9]+(\.[0-9]+)?S)?)?"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a value: where (`$.items[0].count`) and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Validator:
    """Checks values against one schema. Raises `ToolDefinitionError` for what is no schema; `name` says whose it is."""

    def __init__(self, schema: Mapping[str, Any], name: str) -> None:
        from jsonschema import Draft202012Validator, SchemaError
        from referencing import Registry

        schema = {key: value for key, value in schema.items() if key != "$schema"}  # ours is the only dialect
        formats = _formats()
        try:
            Draft202012Validator.check_schema(schema, format_checker=formats)
        except SchemaError as error:
            message = f"{name}: not a JSON Schema (2020-12): {error.json_path}: {error.message}"
            raise ToolDefinitionError(message) from error
        _check_references(name, schema)
        if {'"unevaluatedProperties"', '"patternProperties"'} <= set(
            re.findall(r'"\w+"', json.dumps(schema, default=repr))
        ):
            raise ToolDefinitionError(  # jsonschema would match the patterns by itself, without a limit
                f"{name}: unevaluatedProperties beside patternProperties is not supported; use additionalProperties"
            )
        self._clock = Clock(SECONDS)
        self._validator = bounded_validator(self._clock)(schema, registry=Registry(), format_checker=formats)

    def problems(self, value: Any) -> list[Problem]:
        """What is wrong with a value, the first `MAX_PROBLEMS` of it; empty if nothing is."""
        self._clock.start()
        try:
            errors = list(itertools.islice(self._validator.iter_errors(value), MAX_PROBLEMS))
            errors.sort(key=lambda error: error.json_path)
            return list(dict.fromkeys(problem for error in errors for problem in _problems(error)))
        except RecursionError:
            return [Problem("$", "nested too deeply")]
        except TimeoutError:
            return [Problem("$", f"cannot be checked within {SECONDS:g} s; send a shorter or simpler value")]
        except (ArithmeticError, ValueError) as error:  # such as an infinite number where a multiple of 3 is wanted
            return [Problem("$", f"cannot be checked: {error}")]


@functools.cache
def _formats() -> FormatChecker:
    """jsonschema's, durations, which it leaves to a large package, and patterns as they are matched here."""
    import regex
    from jsonschema import Draft202012Validator, FormatChecker

    formats = FormatChecker(())
    formats.checkers = dict(Draft202012Validator.FORMAT_CHECKER.checkers)
    formats.checks("duration")(lambda value: not isinstance(value, str) or bool(_DURATION.fullmatch(value)))
    formats.checks("regex", regex.error)(lambda value: not isinstance(value, str) or bool(regex.compile(value)))
    return formats


def _check_references(name: str, schema: Mapping[str, Any]) -> None:
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    def check(resource: Resource[Any], resolver: Resolver[Any]) -> None:
        contents = resource.contents if isinstance(resource.contents, Mapping) else {}
        for reference in (contents[keyword] for keyword in ("$ref", "$dynamicRef") if keyword in contents):
            try:
                resolver.lookup(reference)
            except Unresolvable as error:
                raise ToolDefinitionError(
                    f"{name} may not refer to {reference!r}, which is not in the schema; put it under $defs"
                ) from error
        for part in resource.subresources():
            check(part, resolver.in_subresource(part))

    resource: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    check(resource, Registry().with_resource(resource.id() or "", resource).resolver(resource.id() or ""))


def _problems(error: ValidationError) -> Iterator[Problem]:
    """One error of jsonschema in words that a model can act on."""
    path, value, wanted = error.json_path, error.instance, error.validator_value
    if error.validator == "required":
        yield Problem(path, f"{next(key for key in wanted if _says(error, key))!r} is missing")
    elif error.validator == "additionalProperties" and wanted is False:
        yield Problem(path, _unexpected(error.message, error.schema.get("properties", {})))
    elif error.validator == "type":
        types = " or ".join([wanted] if isinstance(wanted, str) else wanted)
        yield Problem(path, f"expected {types}, got {shown(value)}")
    elif error.validator in ("enum", "const"):
        options = wanted if error.validator == "enum" else [wanted]
        yield Problem(path, f"expected one of {', '.join(_json(option) for option in options)}, got {shown(value)}")
    elif error.validator == "format":
        example = f", such as {_EXAMPLES[wanted]}" if wanted in _EXAMPLES else ""
        yield Problem(path, f"{shown(value)} is no {wanted}{example}")
    elif error.validator == "pattern":
        yield Problem(path, f"{shown(value)} does not match {wanted!r}")
    elif error.validator in ("anyOf", "oneOf") and error.context:
        yield from _closest_branch(error)
    else:
        message = error.message if len(error.message) <= 300 else f"{error.message[:300]}…"
        yield Problem(path, message)


def _closest_branch(error: ValidationError) -> Iterator[Problem]:
    """Of a union, the problems of the branch that fits best: type and tag are right, it fails deepest in the value."""
    branches: dict[int, list[ValidationError]] = {}
    for part in error.context or ():
        branches.setdefault(int(part.schema_path[0]), []).append(part)
    closest = max(branches.values(), key=_fit)
    if all(part.validator == "type" and not part.path for parts in branches.values() for part in parts):
        types = [part.validator_value for parts in branches.values() for part in parts]
        flat = dict.fromkeys(kind for kinds in types for kind in ([kinds] if isinstance(kinds, str) else kinds))
        yield Problem(error.json_path, f"expected {' or '.join(flat)}, got {shown(error.instance)}")
        return
    for part in closest:
        yield from _problems(part)


def _fit(parts: list[ValidationError]) -> tuple[bool, bool, int, int]:
    has_type = not any(part.validator == "type" and not part.path for part in parts)
    has_tag = not any(part.validator == "const" for part in parts)
    return has_type, has_tag, max(len(part.path) for part in parts), -len(parts)


def _says(error: ValidationError, key: str) -> bool:
    """jsonschema reports each missing key in an error of its own and names it in the message only."""
    return error.message.startswith(f"{key!r} is a required property")


def _unexpected(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key[:200], known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"
    return f"unexpected {key[:200]!r}{hint}"


def shown(value: Any) -> str:
    """A value in an error: its kind, and if it is short the value itself."""
    kind = _JSON_TYPES.get(type(value), type(value).__name__)
    return kind if isinstance(value, (dict, list)) or value is None else f"{kind} {_json(value)}"


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:80]}…"
