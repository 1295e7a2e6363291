"""Answer one question, with tools where --tools offers them."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack

from v32.agent.commands import options
from v32.agent.commands.servers import Servers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the question; - reads it from standard input")
    parser.add_argument("--json", action="store_true", help="one JSON object a line; the last has type result")
    parser.add_argument("--no-deltas", action="store_true", help="with --json: whole events only")
    parser.add_argument("--journal", metavar="PATH", help="write the session to a new file")
    parser.add_argument("--resume", metavar="PATH", help="go on with a journal; finishes an interrupted run")
    options.add_agent_options(parser)
    options.add_sampling_options(parser)
    options.add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.prompt is None and arguments.resume is None:
        raise options.UsageError("a question is missing; give one, or --resume PATH")
    if arguments.journal and arguments.resume:
        raise options.UsageError("--journal starts a new file and --resume goes on with one; give one of them")
    if arguments.prompt == "-" and sys.stdin is None:
        raise options.UsageError("standard input is closed; give the question as an argument")
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    return asyncio.run(_answer(arguments, prompt))


async def _answer(arguments: argparse.Namespace, prompt: str | None) -> int:
    from v32.agent.commands.views import JsonView, follow
    from v32.agent.limits import StopReason
    from v32.agent.render import TextView

    view = JsonView(deltas=not arguments.no_deltas) if arguments.json else TextView()
    async with AsyncExitStack() as stack:
        servers = Servers(arguments.mcp)
        stack.push_async_callback(servers.aclose)
        agent = options.build_agent(arguments, await servers.connect())
        stack.push_async_callback(agent.model.aclose)
        stack.push_async_callback(agent.aclose)
        session = agent.resume(arguments.resume) if arguments.resume else agent.session(arguments.journal)
        async with session:
            result = await follow(session.stream(prompt), view)
    return 0 if result.stop_reason is StopReason.ANSWER else 1
