"""How far a run may go, how far it has gone, and why it stopped. Plain numbers; no clock is read here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum


class StopReason(StrEnum):
    """Why a run ended. Only `answer` means that the model gave an answer of its own accord."""

    ANSWER = "answer"
    EMPTY = "empty"
    """The model ended its turn without an answer and without a call."""
    INVALID_ANSWER = "invalid_answer"
    """The answer is not what `response_format` asks for; `output` holds it all the same."""
    LENGTH = "length"
    """A completion was cut off by its token limit."""
    TURN_LIMIT = "turn_limit"
    TOKEN_LIMIT = "token_limit"
    TOOL_CALL_LIMIT = "tool_call_limit"
    TIME_LIMIT = "time_limit"
    REFUSED_CALLS = "refused_calls"
    """Several turns in a row held nothing but calls that could not be run."""
    CONTEXT_OVERFLOW = "context_overflow"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run; None means no bound. Seconds count from the start of `run`, also of a resumed one."""

    turns: int | None = 64
    """Completions."""
    tokens: int | None = None
    """Tokens that the model may produce in all its completions together."""
    tool_calls: int | None = None
    """Calls that are run. After the last one the model is asked for its answer, with `tool_choice="none"`."""
    seconds: float | None = None
    refused_turns: int | None = 4
    """Turns in a row whose every call was refused: malformed, unknown tool or invalid arguments."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise ValueError(f"Limits.{field.name} is {value}; it must be more than 0, or None for no limit")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has gone."""

    turns: int = 0
    tokens: int = 0
    tool_calls: int = 0
    refused_turns: int = 0


def reached(limits: Limits, progress: Progress) -> tuple[StopReason, str] | None:
    """The first limit that forbids another completion, with its words; None if there is room."""
    checks = (
        (progress.turns, limits.turns, StopReason.TURN_LIMIT, "turns"),
        (progress.tokens, limits.tokens, StopReason.TOKEN_LIMIT, "tokens"),
        (
            progress.refused_turns,
            limits.refused_turns,
            StopReason.REFUSED_CALLS,
            "turns with nothing but refused calls",
        ),
    )
    for count, bound, reason, words in checks:
        if bound is not None and count >= bound:
            return reason, f"{count} of {bound} {words}"
    return None


def calls_left(limits: Limits, progress: Progress) -> int | None:
    """How many more calls may be run; None: any number."""
    return None if limits.tool_calls is None else max(0, limits.tool_calls - progress.tool_calls)


def tokens_left(limits: Limits, progress: Progress) -> int | None:
    """How many more tokens may be produced; None: any number."""
    return None if limits.tokens is None else max(0, limits.tokens - progress.tokens)
