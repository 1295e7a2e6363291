"""Talk with the agent. Ctrl-C stops an answer, Ctrl-D ends. Without a terminal: one message a line, plain text."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from v32.agent.commands import options
from v32.agent.commands.servers import Servers

if TYPE_CHECKING:
    from v32.agent.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--journal", metavar="PATH", help="write the session to a new file, what it computed to PATH.kv"
    )
    parser.add_argument("--resume", metavar="PATH", help="go on with a journaled session")
    options.add_agent_options(parser)
    options.add_sampling_options(parser)
    options.add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.journal and arguments.resume:
        raise options.UsageError("--journal starts a new file and --resume goes on with one; give one of them")
    with asyncio.Runner() as loop, ExitStack() as stack:
        servers = Servers(arguments.mcp)
        stack.callback(lambda: loop.run(servers.aclose()))
        agent = options.build_agent(arguments, loop.run(servers.connect()))
        agent.model.keep_kv = True
        session = agent.resume(arguments.resume) if arguments.resume else agent.session(arguments.journal)
        stack.callback(lambda: loop.run(_close(session)))
        _talk(session, loop)
    return 0


def _talk(session: Session, loop: asyncio.Runner) -> None:
    from v32.agent.commands.views import follow
    from v32.agent.render import TextView

    view = TextView()
    if session.is_interrupted:
        loop.run(follow(session.stream(), view))
    while (message := _next_message()) is not None:
        if not message.strip():
            continue
        try:
            loop.run(follow(session.stream(message), view))
        except KeyboardInterrupt:
            print(file=sys.stderr)


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


async def _close(session: Session) -> None:
    await session.aclose()
    await session.agent.aclose()
    await session.agent.model.aclose()
