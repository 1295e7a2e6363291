"""What the grammar costs: compile time, mask, forced tokens, accept; and how many model steps forcing saves.

    python benchmarks/grammar_masks.py TOKENIZER_FOLDER_OR_FILE [--vocab-size N]

Prints one JSON object. Times are CPU times of one thread. The completion walked is canonical: reasoning, a sentence
and two calls of tools with four parameters each; it is checked to be accepted, and every forced token to be its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from v32.model_runtime.encoding import V32, ChatTokenizer
from v32.model_runtime.grammar import ConstraintCompiler
from v32.model_runtime.messages import ToolSpec

OPTIONS = {
    "type": "object",
    "properties": {
        "lang": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "range": {"type": "object", "properties": {"from": {"type": "integer"}, "to": {"type": "integer"}}},
    },
    "required": ["lang"],
}
TOOLS = [
    ToolSpec(
        name,
        "",
        {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 50},
                "mode": {"enum": ["fast", "careful"]},
                "options": OPTIONS,
            },
            "required": ["query"],
        },
    )
    for name in ("search", "open_page")
]
OPTIONS_TEXT = '{"lang": "en", "tags": ["moon", "orbit"], "range": {"from": 1969, "to": 2024}}'
THOUGHTS = "The user asks how far the moon is. I should look it up before I answer, and check the unit. " * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--vocab-size", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = ChatTokenizer.from_dir if arguments.tokenizer.is_dir() else ChatTokenizer.from_file
    compiler = ConstraintCompiler(load(arguments.tokenizer), arguments.vocab_size)
    report: dict[str, Any] = {"vocab_size": compiler.vocab_size}
    report["prepare_ms"] = milliseconds(lambda: compiler.compile([], "none", "chat"))
    report["compile_ms"] = milliseconds(lambda: compiler.compile(TOOLS))
    report["compile_50_tools_ms"] = milliseconds(lambda: compiler.compile(many_tools()))
    print(json.dumps(report | walk(compiler)))


def milliseconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return round(1e3 * (time.process_time() - started), 1)


def many_tools() -> list[ToolSpec]:
    properties = {f"parameter_{index}": {"type": "string"} for index in range(6)}
    return [ToolSpec(f"tool_{index}", "", {"type": "object", "properties": properties}) for index in range(50)]


def completion() -> str:
    def call(name: str, query: str) -> str:
        values = [("query", True, query), ("limit", False, "10"), ("mode", True, "fast")]
        values.append(("options", False, OPTIONS_TEXT))
        lines = [f"{V32.parameter_open(key, is_string=s)}{value}{V32.parameter_close}" for key, s, value in values]
        return V32.invoke_open(name) + "\n".join(lines) + f"\n{V32.invoke_close}"

    calls = "\n".join(call(tool.name, "distance of the moon") for tool in TOOLS)
    return f"{THOUGHTS}{V32.think_close}I look it up.{V32.block_open}{calls}\n{V32.block_close}{V32.eos}"


def walk(compiler: ConstraintCompiler) -> dict[str, Any]:
    ids = compiler.tokenizer.encode_segments(V32.split(completion()))
    constraint = compiler.compile(TOOLS)
    bitmask = torch.zeros((compiler.vocab_size + 31) // 32, dtype=torch.int32)
    times: dict[str, list[float]] = {"mask": [], "forced": [], "accept": []}

    def timed(name: str, action: Callable[..., Any], *arguments: Any) -> Any:
        started = time.thread_time_ns()
        result = action(*arguments)
        times[name].append((time.thread_time_ns() - started) / 1e3)
        return result

    steps = 0
    for _ in range(5):
        matcher, position, steps = constraint.start(), 0, 0
        while position < len(ids):
            forced = timed("forced", matcher.forced_tokens)
            assert forced == ids[position : position + len(forced)], "forced tokens are not canonical"
            if not forced:
                steps += 1
                timed("mask", matcher.fill_bitmask, bitmask)
            for token_id in forced or ids[position : position + 1]:
                assert timed("accept", matcher.accept, token_id), "refused"
            position += len(forced) or 1
    block = len(compiler.tokenizer.encode_segments(V32.split(completion().split("I look it up.")[1])))
    return {
        "tokens": len(ids),
        "block_tokens": block,
        "sampled_tokens": steps,
        "sampled_in_block": steps - (len(ids) - block),
        **{f"{name}_us": quantiles(values) for name, values in times.items()},
    }


def quantiles(values: list[float]) -> dict[str, float]:
    p50, p90, p99, most = np.quantile(values, [0.5, 0.9, 0.99, 1]).round(1).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "max": most}


if __name__ == "__main__":
    main()
