"""Talk with the agent. Ctrl-C stops an answer, Ctrl-D ends. Without a terminal: one message a line, plain text."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from v32.agent.commands import conversation

if TYPE_CHECKING:
    from v32.agent.session import Session

add_arguments = conversation.add_arguments


def run(arguments: argparse.Namespace) -> int:
    with conversation.open_conversation(arguments, keep_kv=True) as (loop, session):
        _talk(session, loop)
    return 0


def _talk(session: Session, loop: asyncio.Runner) -> None:
    from v32.agent.commands.views import follow
    from v32.agent.render import TextView

    view = TextView()

    def answer(message: str | None) -> None:
        try:
            loop.run(follow(session.stream(message), view))
        except KeyboardInterrupt:
            print(file=sys.stderr)

    if session.is_interrupted:
        answer(None)
    while (message := _next_message()) is not None:
        if message.strip():
            answer(message)


def _next_message() -> str | None:
    if sys.stdin is None:  # closed
        return None
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print()
        return None
