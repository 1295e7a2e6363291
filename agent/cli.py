"""The command line `v32`: finds the command and hands over. Each command is a module of `commands/`.

A command's module has `add_arguments(parser)` and `run(arguments) -> exit code`; it is imported when it is called, so
that `v32 --help` answers at once.

    0  done, and for `run`: answered        2  wrong usage, or something that the user can put right
    1  ended without an answer              130  interrupted
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from v32.agent.startup import shorten_torch_import

COMMANDS = {
    "run": "answer one question",
    "chat": "talk with the agent",
    "eval": "run a suite of verifiable tasks",
    "serve": "serve the model over an OpenAI-compatible API",
    "plan": "say before loading whether a model fits and how fast it will be",
    "bench": "measure how fast a checkpoint runs here",
    "doctor": "say what this machine's sandboxes enforce",
}
EPILOG = "`v32 COMMAND --help` describes a command. Without --model, the small checkpoint that comes along is used."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a failure with a known remedy is one line on standard error."""
    if argv is None:
        shorten_torch_import()
        argv = sys.argv[1:]
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _forget_output()
        return 1
    except _known_errors() as error:
        print(f"v32 {argv[0]}: {error}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    name = _command(argv[:1])
    parser = command_parser(name)
    if int(os.environ.get("RANK", "0")):
        return _follow(parser, argv[1:])
    arguments = parser.parse_args(argv[1:])
    return int(_module(name).run(arguments))


def command_parser(name: str) -> argparse.ArgumentParser:
    """Reads the arguments of a command."""
    module = _module(name)
    parser = argparse.ArgumentParser(prog=f"v32 {name}", description=module.__doc__)
    module.add_arguments(parser)
    return parser


def _module(name: str) -> Any:
    return importlib.import_module(f"v32.agent.commands.{name}")


def _command(argv: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(
        prog="v32",
        usage="v32 COMMAND [OPTION]...",
        description="An agent runtime for DeepSeek-V3.2.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name, words in COMMANDS.items():
        commands.add_parser(name, help=words, add_help=False)
    return str(parser.parse_args(argv).command)


class _Version(argparse.Action):
    """The package's metadata is read when it is asked for, not at every start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"v32 {version('v32')}")
        parser.exit()


def _follow(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """One of torchrun's processes above rank 0, which talks alone: serve it, if the command loads a model."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        arguments = parser.parse_args(argv)
    if hasattr(arguments, "tensor_parallel"):
        from v32.model_runtime.ranks import follow

        follow()
    return 0


def _known_errors() -> tuple[type[Exception], ...]:
    """What is reported in one line, without a traceback. Imported only when something has gone wrong."""
    from v32.agent.commands.errors import UsageError
    from v32.agent.errors import AgentError
    from v32.model_runtime.errors import ModelRuntimeError
    from v32.sandboxes.errors import SandboxError
    from v32.tools.errors import ToolsError

    return UsageError, AgentError, ModelRuntimeError, SandboxError, ToolsError


def _forget_output() -> None:
    """The reader of our output has gone; Python must not try to flush it on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
