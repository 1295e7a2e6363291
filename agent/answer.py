"""Whether an answer is the JSON that was asked for: text in, its value or what is wrong with it out."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from v32.tools.validation import Validator


class Answer(NamedTuple):
    """`value` as parsed; `problem` says where and why it does not satisfy the schema."""

    value: Any = None
    problem: str | None = None


def read_answer(text: str, validator: Validator) -> Answer:
    """The validator of tool arguments has the last word, also over what a grammar let through."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as failure:
        return Answer(problem=f"the answer is not JSON: {failure}")
    if problems := validator.problems(value):
        return Answer(problem=f"the answer does not follow response_format: {'; '.join(map(str, problems))[:1000]}")
    return Answer(value)
