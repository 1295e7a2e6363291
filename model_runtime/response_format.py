"""What an answer must look like: `response_format` as a user writes it in, the JSON Schema of the answer out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from v32.model_runtime.errors import UnsupportedSchemaError

ResponseFormat = Mapping[str, Any] | type
"""As the OpenAI API has it (`json_object`, `json_schema`, `text`), a JSON Schema itself, or a pydantic model class."""


def answer_schema(response_format: ResponseFormat | None) -> dict[str, Any] | None:
    """The schema that answers must satisfy; None where text may be anything. Applied to its own result it changes
    nothing. Raises `UnsupportedSchemaError` for what is no format or no JSON Schema."""
    if response_format is None or response_format == {}:
        return None
    if isinstance(response_format, type):
        return _checked(_schema_of_class(response_format))
    if not isinstance(response_format, Mapping):
        raise UnsupportedSchemaError(
            f"response_format is {response_format!r}; give a mapping or a pydantic model class"
        )
    match response_format.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            return _checked(_schema_of_envelope(response_format))
    return _checked(dict(response_format))


def _schema_of_class(model: type) -> dict[str, Any]:
    if not hasattr(model, "model_json_schema"):
        raise UnsupportedSchemaError(
            f"response_format is the class {model.__name__}; only pydantic models have a schema"
        )
    schema: dict[str, Any] = model.model_json_schema()
    return schema


def _schema_of_envelope(response_format: Mapping[str, Any]) -> dict[str, Any]:
    envelope = response_format.get("json_schema")
    schema = envelope.get("schema") if isinstance(envelope, Mapping) else None
    if not isinstance(schema, Mapping):
        raise UnsupportedSchemaError(
            "response_format of type json_schema lacks its schema; "
            'write {"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}'
        )
    return dict(schema)


def _checked(schema: dict[str, Any]) -> dict[str, Any]:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UnsupportedSchemaError(
            f"response_format is no JSON Schema: {error.json_path}: {error.message}"
        ) from error
    return schema
