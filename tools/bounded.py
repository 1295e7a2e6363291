"""The validator of jsonschema within a time limit: patterns may backtrack, and unions branch, without end.

What it finds is the same, but that decimal fractions are exact, and that each additional property is an error of its
own, whose message is its name.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema import ValidationError


class Clock:
    """How long the check that runs may go on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = math.inf

    def start(self) -> None:
        self._end = time.monotonic() + self._seconds

    def left(self) -> float:
        """Seconds. Raises `TimeoutError` when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def matches(self, pattern: str, text: str) -> bool:
        """As `re.search`. Raises `TimeoutError`."""
        import regex

        return regex.search(pattern, text, timeout=self.left()) is not None


def bounded_validator(clock: Clock) -> Any:
    """The validator of jsonschema, whose every keyword looks at the clock first, patterns also while they match."""
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, wanted: str, value: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(value, str) and not clock.matches(wanted, value):
            yield ValidationError(f"does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        for pattern, key in itertools.product(wanted, value if isinstance(value, dict) else ()):
            if clock.matches(pattern, key):
                yield from validator.descend(value[key], wanted[pattern], path=key, schema_path=pattern)

    def additional_properties(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        patterns = schema.get("patternProperties", ())
        for key in value if isinstance(value, dict) else ():
            if key in schema.get("properties", ()) or any(clock.matches(pattern, key) for pattern in patterns):
                continue
            if wanted is False:
                yield ValidationError(key)
            else:
                yield from validator.descend(value[key], wanted, path=key)

    def multiple_of(validator: Any, wanted: float, value: Any, schema: Any) -> Iterator[ValidationError]:
        """Of the numbers as they are written: 0.3 is a multiple of 0.1."""
        if validator.is_type(value, "number") and Fraction(str(value)) % Fraction(str(wanted)):
            yield ValidationError(f"{value!r} is not a multiple of {wanted!r}")

    def in_time(keyword: Callable[..., Any]) -> Callable[..., Any]:
        def check(*arguments: Any) -> Any:
            clock.left()
            return keyword(*arguments)

        return check

    own = {
        "multipleOf": multiple_of,
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
    }
    keywords = {**Draft202012Validator.VALIDATORS, **own}
    return extend(Draft202012Validator, {name: in_time(keyword) for name, keyword in keywords.items()})
