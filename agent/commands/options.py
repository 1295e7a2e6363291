"""The options that commands share, and what they build: a model, sampling parameters, tools, an agent."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v32.agent.commands.errors import UsageError
from v32.agent.commands.interrupt import ends_at_once
from v32.agent.commands.progress import loading_bar

if TYPE_CHECKING:
    from v32.agent.agent import Agent
    from v32.model_runtime.chat import ChatModel
    from v32.model_runtime.generators.generator import SamplingParams
    from v32.tools.tool import Tool

DOCUMENT_TOOLS = ("search", "open_page", "find")
VARIANTS = ("auto", "v3.2", "speciale", "exp", "unknown")
DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_DTYPES = (*DTYPES, "fp8")
CODE_TOOLS = ("python", "bash", "files")
WEB_SERVICES = ("searxng", "brave", "tavily", "exa", "serper")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="SRC", help="folder, repository in the Hugging Face cache, or server URL")
    group.add_argument("--tokenizer", metavar="DIR", help="folder of a tokenizer.json; needed for a server")
    group.add_argument("--server-model", metavar="NAME", help="which of a server's models")
    group.add_argument("--variant", choices=VARIANTS, default="auto", help=f"{', '.join(VARIANTS)} (default auto)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default auto)")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help=f"{', '.join(DTYPES)} (default auto)")
    group.add_argument(
        "--numerics", choices=("float", "deepseek"), default="float", help="deepseek: round as published"
    )
    group.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="processes that share the weights, started here; under torchrun all of its processes do",
    )
    group.add_argument("--memory-budget", metavar="SIZE", help="such as 4GiB; experts beyond it stay in their files")
    group.add_argument("--expert-cache", metavar="SIZE", help="such as 8GiB of a GPU; experts lie in host memory")
    group.add_argument("--kv-dtype", choices=KV_DTYPES, default="auto", help="of cached keys and values (default auto)")
    group.add_argument("--speculative", type=int, default=0, metavar="N", help="tokens the MTP layer drafts a step")
    group.add_argument("--max-context", type=int, metavar="N", help="positions of prompt and completion together")
    group.add_argument("--chat-mode", action="store_true", help="answer without thinking")
    group.add_argument("--no-grammar", action="store_true", help="do not hold calls to the grammar of the tools")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--seed", type=int, help="the same seed gives the same run")
    group.add_argument("--temperature", type=float, help="0 is greedy; the model card recommends 1.0 (default)")
    group.add_argument("--top-p", type=float, help="the model card recommends 0.95 (default)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="bound of one completion")


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("agent")
    group.add_argument("--tools", default="", metavar="A,B", help=f"of {', '.join(DOCUMENT_TOOLS + CODE_TOOLS)}")
    group.add_argument("--docs", metavar="DIR", help="the documents that search, open_page and find work on")
    group.add_argument("--web", metavar="S", help=f"or the web they work on, searched by {', '.join(WEB_SERVICES)}")
    group.add_argument("--recording", metavar="DIR", help="keep what the web answers and do not ask for it again")
    group.add_argument("--offline", action="store_true", help="with --recording: nothing but what was recorded")
    group.add_argument("--mcp", action="append", default=[], metavar="SERVER", help="URL or command line; repeatable")
    group.add_argument("--topn", type=int, default=5, metavar="N", help="hits of a search (default 5)")
    group.add_argument("--instructions", metavar="TEXT", help="what the model is told before the first message")
    group.add_argument("--role", choices=("system", "developer"), default="system", help="who gives tools and text")
    group.add_argument("--response-format", metavar="F", help="json, or a file with the JSON Schema of the answer")
    group.add_argument("--tool-choice", default="auto", metavar="C", help="auto, none, required, or a tool's name")
    group.add_argument("--context", default="discard-75%", metavar="S", help="discard-75%%, discard-all, summary, none")
    group.add_argument("--max-turns", type=int, default=64, metavar="N", help="completions of one run (default 64)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="tokens produced in one run")
    group.add_argument("--max-tool-calls", type=int, metavar="N", help="calls of one run")
    group.add_argument("--max-seconds", type=float, metavar="S", help="seconds of one run")


@ends_at_once()
def load(arguments: argparse.Namespace) -> ChatModel:
    from v32.model_runtime import load_model

    _check_device(arguments.device)
    return _checked(
        load_model,
        source=arguments.model,
        variant=arguments.variant,
        device=arguments.device,
        dtype=arguments.dtype,
        numerics=arguments.numerics,
        thinking_mode="chat" if arguments.chat_mode else "thinking",
        grammar=not arguments.no_grammar,
        max_context=arguments.max_context,
        memory_budget=arguments.memory_budget,
        kv_dtype=arguments.kv_dtype,
        speculative=arguments.speculative,
        tensor_parallel=arguments.tensor_parallel,
        expert_cache=arguments.expert_cache,
        tokenizer=arguments.tokenizer,
        server_model=arguments.server_model,
        progress=loading_bar(),
    )


def _check_device(name: str) -> None:
    import torch

    if name == "auto":
        return
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device: cannot use {name!r}: {reason}; use cpu, or leave it out") from error


def sampling_params(arguments: argparse.Namespace) -> SamplingParams | None:
    """None if nothing was asked for: the model's own defaults hold."""
    asked = {
        name: value
        for name in ("seed", "temperature", "top_p", "max_new_tokens")
        if (value := getattr(arguments, name)) is not None
    }
    if not asked:
        return None
    from v32.model_runtime.generators.generator import SamplingParams

    return _checked(SamplingParams, **asked)


@ends_at_once()
def build_agent(arguments: argparse.Namespace, more_tools: Sequence[Tool] = ()) -> Agent:
    """`more_tools` are offered after those of `--tools`."""
    from v32.agent.agent import Agent
    from v32.agent.context import ContextPolicy
    from v32.agent.limits import Limits

    limits = _checked(
        Limits,
        turns=arguments.max_turns,
        tokens=arguments.max_tokens,
        tool_calls=arguments.max_tool_calls,
        seconds=arguments.max_seconds,
    )
    context = _checked(ContextPolicy, strategy=arguments.context)
    params = sampling_params(arguments)
    response_format = _response_format(arguments.response_format)
    tools = [*build_tools(arguments), *more_tools]
    return _checked(
        Agent,
        model=load(arguments),
        tools=tools,
        instructions=arguments.instructions,
        limits=limits,
        context=context,
        tool_choice=arguments.tool_choice,
        params=params,
        role=arguments.role,
        response_format=response_format,
    )


def _response_format(asked: str | None) -> dict[str, Any] | None:
    if asked is None:
        return None
    if asked == "json":
        return {"type": "json_object"}
    try:
        schema = json.loads(Path(asked).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--response-format: {asked} holds no JSON Schema: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError(f"--response-format: {asked} holds no JSON Schema, but {json.dumps(schema)[:60]}")
    return schema


def build_tools(arguments: argparse.Namespace) -> list[Tool]:
    """The tools of `--tools`, in the order given there."""
    names = [name.strip() for name in arguments.tools.split(",") if name.strip()]
    unknown = [name for name in names if name not in DOCUMENT_TOOLS + CODE_TOOLS]
    if unknown:
        known = ", ".join(DOCUMENT_TOOLS + CODE_TOOLS)
        raise UsageError(f"--tools: unknown tool {unknown[0]!r}; known: {known}")
    if arguments.offline and not arguments.recording:
        raise UsageError("--offline uses what was recorded; say where with --recording DIR")
    if arguments.recording and not arguments.web:
        raise UsageError("--recording keeps what the web answers; choose a service with --web")
    offered: dict[str, list[Tool]] = {}
    if set(names) & set(DOCUMENT_TOOLS):
        offered |= _web_tools(arguments) if arguments.web else _document_tools(arguments.docs, arguments.topn)
    if set(names) & set(CODE_TOOLS):
        offered |= _code_tools()
    return [tool for name in dict.fromkeys(names) for tool in offered[name]]


def _document_tools(docs: str | None, topn: int) -> dict[str, list[Tool]]:
    from v32.tools import LocalIndex, find_tool, open_page_tool, search_tool

    if docs is None:
        needed = "--docs DIR, a folder of .md, .txt or .jsonl files, or --web SERVICE"
        raise UsageError(f"--tools: search, open_page and find need {needed}")
    if not Path(docs).is_dir():
        raise UsageError(f"--docs: {docs} is no folder")
    index = LocalIndex.from_folder(docs)
    if not len(index):
        raise UsageError(f"--docs: {docs} holds no documents; put .md, .txt or .jsonl files there")
    return {"search": [search_tool(index, topn=topn)], "open_page": [open_page_tool(index)], "find": [find_tool(index)]}


def _web_tools(arguments: argparse.Namespace) -> dict[str, list[Tool]]:
    from v32.tools.web import Cassette, Fetcher, web_search, web_tools

    if arguments.docs:
        raise UsageError("--docs and --web are both places for search, open_page and find; give one of them")
    cassette = Cassette(arguments.recording, "replay" if arguments.offline else "cache")
    service = web_search(arguments.web, cassette=cassette)
    return {tool.name: [tool] for tool in web_tools(service, Fetcher(cassette=cassette), topn=arguments.topn)}


def _code_tools() -> dict[str, list[Tool]]:
    from v32.sandboxes.sandbox import SandboxPolicy
    from v32.tools import CodeSession, bash_tool, files_tools, python_tool

    session = CodeSession(SandboxPolicy())
    return {"python": [python_tool(session)], "bash": [bash_tool(session)], "files": files_tools(session)}


def _checked(make: Any, **options: Any) -> Any:
    """`make(**options)`; a `ValueError`, which its options caused, as a `UsageError`."""
    try:
        return make(**options)
    except ValueError as error:
        raise UsageError(str(error)) from error
