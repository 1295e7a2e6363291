"""Events as text for people: reasoning dim, calls and results marked, the answer plain, the usage at the end.

Events in, characters out. On a terminal in colour; elsewhere the same words without it. What a model or a page wrote
passes the gate that takes out control characters, so that it cannot act on the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from v32.agent.events import CallResult, Event, Rebased, Stopped, ToolFinished, ToolStarted
from v32.agent.limits import StopReason
from v32.agent.result import RunResult
from v32.model_runtime.messages import ContentDelta, ReasoningDelta, Usage
from v32.tools.gate import clean

if TYPE_CHECKING:
    from rich.console import Console

MAX_RESULT_LINES = 12
MAX_ARGUMENT_CHARS = 200


class TextView:
    """Shows a run while it happens."""

    def __init__(self, file: TextIO | None = None) -> None:
        from rich.console import Console

        self._console: Console = Console(file=file, highlight=False, markup=False, emoji=False)
        self._section = ""
        self._has_shown = False

    def show(self, item: Event | RunResult) -> None:
        match item:
            case ReasoningDelta(text):
                self._flow("reasoning", text, "dim")
            case ContentDelta(text):
                self._flow("content", text, "default")
            case ToolStarted(_, name, arguments):
                self._line(f"→ {name}({_arguments(arguments)})", "cyan")
            case ToolFinished(result):
                self._line(_result(result), "red" if result.is_error else "green")
            case Rebased():
                self._line(_rebased(item), "yellow")
            case Stopped(reason, detail) if reason is not StopReason.ANSWER:
                self._line(f"stopped: {reason}" + (f" ({detail})" if detail else ""), "yellow")
            case RunResult(usage=usage, steps=steps):
                if not self._has_shown:  # a run of before: what it came to
                    self._flow("content", item.output, "default")
                    self.show(Stopped(item.stop_reason, item.stop_detail))
                self._line(f"{len(steps)} turns, {usage_line(usage)}", "dim")

    def _flow(self, section: str, text: str, style: str) -> None:
        if self._section != section:
            self._end_section()
            text = text.lstrip("\n")
            if not text:
                return
            self._section = section
        self._write(text, style)

    def _line(self, text: str, style: str) -> None:
        self._end_section()
        self._write(text + "\n", style)

    def _end_section(self) -> None:
        if self._section:
            self._write("\n", "default")
            self._section = ""

    def _write(self, text: str, style: str) -> None:
        from rich.text import Text

        self._has_shown = True
        self._console.print(Text(clean(text), style=style), end="", soft_wrap=True)
        self._console.file.flush()


def usage_line(usage: Usage) -> str:
    """`812 prompt tokens (640 cached), 143 produced (97 reasoning), 2 tool calls, 1.8 s`."""
    return (
        f"{usage.prompt_tokens:,} prompt tokens ({usage.cached_tokens:,} cached), "
        f"{usage.completion_tokens:,} produced ({usage.reasoning_tokens:,} reasoning), "
        f"{usage.tool_calls} tool calls, {usage.seconds.get('total', 0.0):.1f} s"
    )


def _arguments(arguments: object) -> str:
    assert isinstance(arguments, dict)
    return _shortened(", ".join(f"{name}={value!r}" for name, value in arguments.items()), MAX_ARGUMENT_CHARS)


def _result(result: CallResult) -> str:
    lines = result.text.split("\n")
    more = len(lines) - MAX_RESULT_LINES
    shown = "\n  ".join(lines[:MAX_RESULT_LINES]) + (f"\n  … {more} more lines" if more > 0 else "")
    return f"← {result.name or 'call'}: {shown}" if len(lines) == 1 else f"← {result.name or 'call'}:\n  {shown}"


def _rebased(event: Rebased) -> str:
    return f"context shortened by {event.strategy}: {event.tokens_before:,} → {event.tokens_after:,} tokens"


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
