"""The session of `run` and `chat`, with its agent, model and MCP servers, on an event loop of its own."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from v32.agent.commands import options
from v32.agent.commands.servers import Servers
from v32.agent.startup import without_collections

if TYPE_CHECKING:
    from v32.agent.agent import Agent
    from v32.agent.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--journal", metavar="PATH", help="write the session to a new file; chat: also PATH.kv")
    parser.add_argument("--resume", metavar="PATH", help="go on with a journal; finishes an interrupted run")
    options.add_agent_options(parser)
    options.add_sampling_options(parser)
    options.add_model_options(parser)


@contextmanager
def open_conversation(
    arguments: argparse.Namespace, *, keep_kv: bool = False
) -> Iterator[tuple[asyncio.Runner, Session]]:
    """The loop and the session that runs on it, until both are closed; `keep_kv`: beside the journal, for a resume."""
    if arguments.journal and arguments.resume:
        raise options.UsageError("--journal starts a new file and --resume goes on with one; give one of them")
    with asyncio.Runner() as loop, ExitStack() as stack:
        servers = Servers(arguments.mcp)
        stack.callback(lambda: loop.run(servers.aclose()))
        more_tools = loop.run(servers.connect())
        with without_collections():
            agent = options.build_agent(arguments, more_tools)
        stack.callback(lambda: loop.run(_close(agent)))
        agent.model.keep_kv = keep_kv
        session = agent.resume(arguments.resume) if arguments.resume else agent.session(arguments.journal)
        stack.callback(lambda: loop.run(session.aclose()))
        yield loop, session


async def _close(agent: Agent) -> None:
    await agent.aclose()
    await agent.model.aclose()
