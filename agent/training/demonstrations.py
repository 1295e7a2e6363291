"""Tasks in, token ids out: each demonstration becomes the conversation the agent would have had, in the runtime's own
encoding, with the tokens marked that the model has to write itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from v32.agent.tasks.task import Step, Task, Turn
from v32.agent.tasks.toolbox import MAX_HITS, Toolbox
from v32.model_runtime.encoding.encoder import encode_segments
from v32.model_runtime.encoding.tokenizer import ChatTokenizer
from v32.model_runtime.messages import ToolSpec


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The tokens after the preamble; `is_written[i]`: the model wrote token i (reasoning, answer and calls of the last
    turn, end of sentence)."""

    token_ids: list[int]
    is_written: list[bool]

    def after(self, token_ids: list[int]) -> Demonstration:
        """The same behind tokens that the model does not write."""
        return Demonstration([*token_ids, *self.token_ids], [False] * len(token_ids) + self.is_written)

    def first_answer(self, eos_id: int) -> Demonstration:
        """As far as the model first ends: with a call or an answer."""
        end = self.token_ids.index(eos_id) + 1
        return Demonstration(self.token_ids[:end], self.is_written[:end])


def preamble(specs: Sequence[ToolSpec], tokenizer: ChatTokenizer, instructions: str | None = None) -> list[int]:
    """What stands before the first user message: begin of sentence, instructions, tools."""
    return tokenizer.encode_segments(encode_segments([system_message(specs, instructions)], "thinking"))


def tools_listed(specs: Sequence[ToolSpec], tokenizer: ChatTokenizer) -> list[int]:
    """The end of the preamble, from its last control token on: the schemas, without the explanation of calls."""
    segments = encode_segments([system_message(specs, None)], "thinking")
    last = max(i for i, segment in enumerate(segments) if segment.is_control)
    return tokenizer.encode_segments(segments[last + 1 :])


def system_message(specs: Sequence[ToolSpec], instructions: str | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "system", "content": instructions or ""}
    return message | ({"tools": [spec.to_openai() for spec in specs]} if specs else {})


def demonstrate(task: Task, tokenizer: ChatTokenizer, max_hits: int = MAX_HITS) -> Demonstration:
    """The task's conversation in thinking mode, as the model sees it while it answers the last user message."""
    segments = encode_segments(conversation(task, max_hits), "thinking", add_default_bos_token=False)
    token_ids = tokenizer.encode_segments(segments)
    return Demonstration(token_ids, _written_tokens(token_ids, task.turns[-1], tokenizer))


def _written_tokens(token_ids: Sequence[int], turn: Turn, tokenizer: ChatTokenizer) -> list[bool]:
    """What follows an opened `<think>` up to and including the end of sentence, but for slips."""
    completions = iter((*(not step.is_slip for step in turn.steps), True))
    written, is_open = [], False
    for token_id in token_ids:
        written.append(is_open)
        if token_id == tokenizer.think_open_id:
            is_open = next(completions)
        elif token_id == tokenizer.eos_id:
            is_open = False
    return written


def conversation(task: Task, max_hits: int = MAX_HITS) -> list[dict[str, Any]]:
    """OpenAI-shaped messages of the demonstration, without a system message."""
    toolbox = Toolbox(task, max_hits)
    return [message for turn in task.turns for message in _turn(turn, toolbox)]


def _turn(turn: Turn, toolbox: Toolbox) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": turn.question}]
    for step in turn.steps:
        messages += _step(step, toolbox)
    messages.append({"role": "assistant", "content": turn.answer, "reasoning_content": turn.reasoning})
    return messages


def _step(step: Step, toolbox: Toolbox) -> list[dict[str, Any]]:
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for i, call in enumerate(step.calls)
    ]
    results = [
        {"role": "tool", "tool_call_id": f"call_{i}", "content": toolbox.simulate(call)}
        for i, call in enumerate(step.calls)
    ]
    return [{"role": "assistant", "content": "", "reasoning_content": step.reasoning, "tool_calls": calls}, *results]
