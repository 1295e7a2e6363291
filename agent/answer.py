"""Whether an answer is the JSON that was asked for: text in, its value or what is wrong with it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """`value` as parsed; `problem` says where and why it does not satisfy the schema."""

    value: Any = None
    problem: str | None = None


def read_answer(text: str, schema: Mapping[str, Any]) -> Answer:
    """jsonschema has the last word, also over what a grammar let through."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        value = json.loads(text)
        error = best_match(Draft202012Validator(schema).iter_errors(value))
    except (ValueError, RecursionError) as failure:
        return Answer(problem=f"the answer is not JSON: {failure}")
    if error is not None:
        return Answer(problem=f"the answer does not follow response_format: {error.json_path}: {error.message[:300]}")
    return Answer(value)
