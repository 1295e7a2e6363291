"""Number ranges as grammar expressions: bounds in, expression over canonical decimal digits out.

Canonical means as `json.dumps` writes them: no leading zeros, no `-0`, fractions without trailing zeros (`1.0` keeps
its one), exponents from 1e16 and below 1e-4 only.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TypeVar

from v32.model_runtime.grammar.schema import Number

ANY_INTEGER = '("0" | "-"? [1-9] [0-9]*)'
ANY_FRACTION = '("." ("0" | [0-9]* [1-9]))'


def _decimals_up_to(digits: str) -> str:
    """Decimals without a trailing zero, one or more, of which none is above `digits`."""
    first, rest = int(digits[0]), digits[1:]
    smaller = ['"0" [0-9]* [1-9]'] if first else []
    if first > 1:
        smaller.append(f"[1-{first - 1}] ([0-9]* [1-9])?")
    equal = f'"{first}"'
    if rest:
        equal += f" ({_decimals_up_to(rest)})" + ("?" if first else "")
    return " | ".join([*smaller, equal])


_LARGEST = f'"1" ("." ({_decimals_up_to("7976931348623157")}))? "e+308"'
_BIG = f'([1-9] ("." [0-9]* [1-9])? "e+" ("1" [6-9] | [2-9] [0-9] | [12] [0-9] [0-9] | "30" [0-7]) | {_LARGEST})'
_SMALL = '([1-9] ("." [0-9]* [1-9])? "e-" ("0" [5-9] | [1-9] [0-9] | [12] [0-9] [0-9] | "3" ([01] [0-9] | "2" [0-4])))'
ANY_NUMBER = f'("0" | "-"? ("0" {ANY_FRACTION} | [1-9] [0-9]* {ANY_FRACTION}? | {_BIG} | {_SMALL}))'


def number_expression(number: Number) -> str | None:
    """The numbers that a shape allows; None if there is none."""
    if number.minimum is None and number.maximum is None:
        return ANY_INTEGER if number.is_integer else ANY_NUMBER
    if number.is_integer:
        return _integers(*_integer_bounds(number))
    return _any_of(
        _positive(number.minimum, number.excludes_minimum, number.maximum, number.excludes_maximum),
        _signed(
            _positive(
                _negated(number.maximum), number.excludes_maximum, _negated(number.minimum), number.excludes_minimum
            )
        ),
        '"0" ".0"?' if _holds_zero(number) else None,
    )


def _integer_bounds(number: Number) -> tuple[int | None, int | None]:
    low = high = None
    if number.minimum is not None:
        low = math.floor(number.minimum) + 1 if number.excludes_minimum else math.ceil(number.minimum)
    if number.maximum is not None:
        high = math.ceil(number.maximum) - 1 if number.excludes_maximum else math.floor(number.maximum)
    return low, high


def _holds_zero(number: Number) -> bool:
    above = number.minimum is None or number.minimum < 0 or (number.minimum == 0 and not number.excludes_minimum)
    below = number.maximum is None or number.maximum > 0 or (number.maximum == 0 and not number.excludes_maximum)
    return above and below


def _integers(low: int | None, high: int | None) -> str | None:
    zero = '"0"' if (low is None or low <= 0) and (high is None or high >= 0) else None
    return _any_of(zero, _naturals(low, high), _signed(_naturals(_negated(high), _negated(low))))


def _naturals(low: int | None, high: int | None) -> str | None:
    """The whole numbers from max(low, 1) to high, without a sign."""
    low = max(1 if low is None else low, 1)
    if high is None:
        return _any_of(_same_length(str(low), "9" * len(str(low))), f"[1-9] {_digits(len(str(low)))} [0-9]*")
    if high < low:
        return None
    parts = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = str(max(low, 10 ** (length - 1)))
        parts.append(_same_length(first, str(min(high, 10**length - 1))))
    return _any_of(*parts)


def _same_length(low: str, high: str) -> str:
    """Digit strings of one length, from low to high."""
    if not low:
        return ""
    rest = len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        return _digits(len(low))
    if low[0] == high[0]:
        return f'"{low[0]}" {_same_length(low[1:], high[1:])}'.strip()
    bottom, top = int(low[0]), int(high[0])
    parts = []
    if low[1:] != "0" * rest:
        parts.append(f'"{low[0]}" {_same_length(low[1:], "9" * rest)}')
        bottom += 1
    if high[1:] != "9" * rest:
        parts.append(f'"{high[0]}" {_same_length("0" * rest, high[1:])}')
        top -= 1
    if bottom <= top:
        parts.append(f"{_range(bottom, top)} {_digits(rest)}".strip())
    return _any_of(*parts) or ""


def _positive(low: Decimal | None, excludes_low: bool, high: Decimal | None, excludes_high: bool) -> str | None:
    """The numbers above zero between two bounds, without a sign."""
    if low is None or low < 0:
        low, excludes_low = Decimal(0), True
    if low == 0:
        excludes_low = True
    if high is not None and (high < low or (high == low and (excludes_low or excludes_high))):
        return None
    bottom, lower = _split(low)
    parts = []
    if high is None:
        parts.append(_whole(bottom, _fractions(lower, excludes_low, None, False)))
        parts.append(_fractional(_naturals(bottom + 1, None)))
        parts.append(_BIG if low < 10**16 else None)
    else:
        top, upper = _split(high)
        if bottom == top:
            parts.append(_whole(bottom, _fractions(lower, excludes_low, upper, excludes_high)))
        else:
            parts.append(_whole(bottom, _fractions(lower, excludes_low, None, False)))
            parts.append(_fractional(_naturals(bottom + 1, top - 1)))
            parts.append(_whole(top, _fractions("", False, upper, excludes_high)))
    if low == 0 and (high is None or high >= Decimal("0.0001")):
        parts.append(_SMALL)
    return _any_of(*parts)


def _split(value: Decimal) -> tuple[int, str]:
    """Whole part and the digits of the fraction."""
    text = f"{value:f}"
    whole, _, fraction = text.partition(".")
    return int(whole), fraction.rstrip("0")


def _whole(number: int, fractions: str | None) -> str | None:
    return None if fractions is None else f'"{number}" {fractions}'


def _fractional(wholes: str | None) -> str | None:
    return None if wholes is None else f"{wholes} {ANY_FRACTION}?"


def _fractions(low: str, excludes_low: bool, high: str | None, excludes_high: bool) -> str | None:
    """Fractions, point included or empty for none, from .low to .high; high None: to the end of the unit."""
    zero = not low and not excludes_low and not (high == "" and excludes_high)
    digits = None if high == "" else _fraction_digits(low, excludes_low, high, excludes_high)
    return _any_of('".0"?' if zero else None, None if digits is None else f'"." {digits}')


def _fraction_digits(low: str, excludes_low: bool, high: str | None, excludes_high: bool) -> str | None:
    """The digits of fractions above zero, from .low to .high, the last one not 0."""
    exact = [
        f'"{low}"' if low and not excludes_low and not (low == high and excludes_high) else None,
        f'"{high}"' if high and not excludes_high and low != high else None,
    ]
    if high is None:
        return _any_of(*exact, *_above(low))
    if low == high:
        return _any_of(*exact)
    padded = low.ljust(len(high), "0")
    at = next(index for index, digit in enumerate(high) if digit != padded[index])
    start, bottom, top = high[:at], int(padded[at]), int(high[at])
    inside = [f'"{start}" {_range(bottom + 1, top - 1)} ({_TAIL})?'] if bottom + 1 < top else []
    over = [f'"{start}{bottom}" {part}' for part in _above(padded[at + 1 :].rstrip("0") or low[at + 1 :])]
    under = [f'"{start}{top}" {part}' for part in _below(high[at + 1 :])]
    return _any_of(*exact, *inside, *over, *under)


_TAIL = "[0-9]* [1-9]"


def _above(low: str) -> list[str]:
    """Digits that lie above .low, the last one not 0."""
    later = [f'"{low[:at]}" {_range(int(digit) + 1, 9)} ({_TAIL})?' for at, digit in enumerate(low) if digit != "9"]
    return [*later, f'"{low}" {_TAIL}']


def _below(high: str) -> list[str]:
    """Digits, or none, that lie below .high, the last one not 0."""
    parts = []
    for at, digit in enumerate(high):
        if at == 0 or high[at - 1] != "0":
            parts.append(f'"{high[:at]}"')
        if digit > "1":
            parts.append(f'"{high[:at]}" {_range(1, int(digit) - 1)} ({_TAIL})?')
        if digit > "0":
            parts.append(f'"{high[:at]}0" {_TAIL}')
    return parts


def _range(bottom: int, top: int) -> str:
    return f"[{bottom}]" if bottom == top else f"[{bottom}-{top}]"


def _digits(count: int) -> str:
    return " ".join(["[0-9]"] * count) if count <= 2 else f"[0-9]{{{count}}}"


_Bound = TypeVar("_Bound", int, Decimal)


def _negated(value: _Bound | None) -> _Bound | None:
    return None if value is None else -value


def _signed(expression: str | None) -> str | None:
    return None if expression is None else f'"-" {expression}'


def _any_of(*parts: str | None) -> str | None:
    kept = [part for part in parts if part is not None]
    if len(kept) < 2:
        return kept[0] if kept else None
    return f"({' | '.join(kept)})"
