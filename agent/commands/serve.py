"""Serve the model over an OpenAI-compatible API: chat completions with streaming, tools, reasoning, JSON answers."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from v32.agent.commands import options

if TYPE_CHECKING:
    from v32.model_runtime.chat import ChatModel

KEY_VARIABLE = "V32_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default 8000)")
    group.add_argument("--name", metavar="NAME", help="what clients ask for as model (default: the checkpoint's name)")
    group.add_argument("--api-key", metavar="KEY", help=f"what clients must send; {KEY_VARIABLE} does the same")
    options.add_sampling_options(parser)
    options.add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        import uvicorn

        from v32.model_runtime.server import create_app
    except ModuleNotFoundError as error:
        raise options.UsageError(f"serve needs {error.name}; install it with: pip install 'v32[serve]'") from error
    sampling = options.sampling_params(arguments)
    # Before the weights are loaded, which may take minutes.
    with _listen(arguments.host, arguments.port) as listener:
        model = options.load(arguments)
        model.sampling = sampling or model.sampling
        name = arguments.name or _name_of(model)
        app = create_app(model, name=name, api_key=arguments.api_key or os.environ.get(KEY_VARIABLE))
        host, port = listener.getsockname()[:2]
        print(f"serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise options.UsageError(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from error


def _name_of(model: ChatModel) -> str:
    return Path(str(model.describe()["name"])).name
