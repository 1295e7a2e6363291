"""Answer one question, with tools where --tools offers them."""

from __future__ import annotations

import argparse
import sys

from v32.agent.commands import conversation
from v32.agent.commands.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the question; - reads it from standard input")
    parser.add_argument("--json", action="store_true", help="one JSON object a line; the last has type result")
    parser.add_argument("--no-deltas", action="store_true", help="with --json: whole events only")
    conversation.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.prompt == "-" and sys.stdin is None:
        raise UsageError("standard input is closed; give the question as an argument")
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    if not (arguments.resume if prompt is None else prompt.strip()):
        raise UsageError("a question is missing; give one, or --resume PATH")
    with conversation.open_conversation(arguments) as (loop, session):
        from v32.agent.commands.views import JsonView, follow
        from v32.agent.limits import StopReason
        from v32.agent.render import TextView

        view = JsonView(deltas=not arguments.no_deltas) if arguments.json else TextView()
        result = loop.run(follow(session.stream(prompt), view))
    return 0 if result.stop_reason is StopReason.ANSWER else 1
