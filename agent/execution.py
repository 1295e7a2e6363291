"""Runs the open calls of a session at the same time; each ends with exactly one recorded result.

A call that fails, hangs or crashes touches none of its siblings. What the model did wrong (malformed call, unknown
tool, invalid arguments) is a result that says `Error: …` and how to do better. What the machine did wrong (no sandbox
works, the disk is full) is raised after the siblings have ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from v32.agent.calls import Call
from v32.agent.events import CallResult, Outcome, ToolFinished, ToolStarted
from v32.model_runtime.messages import MalformedToolCall, ToolCall
from v32.tools.gate import cut
from v32.tools.tool import ToolContext, ToolOutput
from v32.tools.toolset import refusal

if TYPE_CHECKING:
    from v32.agent.session import Session

INTERRUPTED = (
    "Error: interrupted before a result was recorded; it may or may not have taken effect. "
    "Check before you call it again."
)
MIN_RESULT_CHARS = 200
OVER_LIMIT = "Error: not run, because the limit of tool calls is reached. Answer with what you have."


async def run_calls(session: Session, may_call: int | None = None) -> None:
    """Give every open call without a result its result; at most `may_call` of them are run."""
    if may_call is not None:
        may_call -= sum(result.was_run for result in session.open_calls.results.values())
    limiter = anyio.CapacityLimiter(session.agent.max_parallel_calls)
    failures: list[Exception] = []

    async def answer(call: ToolCall) -> None:
        try:
            async with limiter:
                session.record(ToolFinished(await run_call(session, call)))
        except Exception as error:
            failures.append(error)

    async with anyio.create_task_group() as group:
        for call in session.open_calls.unanswered:
            if isinstance(call, MalformedToolCall):
                session.record(ToolFinished(_result(call, "malformed", f"Error: {call.reason}\n{call.repair_hint}")))
            elif refused := refuse(session, call):
                session.record(ToolFinished(refused))
            elif may_call is not None and may_call <= 0:
                session.record(ToolFinished(_result(call, "over_limit", OVER_LIMIT)))
            else:
                may_call = None if may_call is None else may_call - 1
                group.start_soon(answer, call)
    if failures:
        raise failures[0]


def refuse(session: Session, call: ToolCall) -> CallResult | None:
    """The result of a call that must not be run; None if it may be."""
    toolset = session.agent.toolset
    if problems := toolset.validate(call.name, call.arguments):
        output = refusal(call.name, problems)
        return _result(call, _outcome_of(output), output.text)
    if call.id in session.open_calls.started and not getattr(toolset[call.name], "safe_to_retry", False):
        return _result(call, "interrupted", INTERRUPTED)
    return None


async def run_call(session: Session, call: ToolCall) -> CallResult:
    """Run a call that may be run; the intent is recorded before anything happens."""
    session.record(ToolStarted(call.id, call.name, call.arguments))
    started = time.monotonic()
    output = await session.agent.toolset.run(call.name, call.arguments, ToolContext(call.id, session.id))
    seconds = time.monotonic() - started
    return CallResult(call.id, call.name, fit(output.text, session), _outcome_of(output), seconds, output.data)


def fit(text: str, session: Session) -> str:
    """A result that takes more than its share of the context, cut in the middle."""
    num_allowed = int(session.agent.context.result_share * session.agent.model.max_context)
    encode, fitting, room = session.transcript.tokenizer.encode_text, text, len(text)
    while len(fitting) > num_allowed // 4 and len(encode(fitting)) > num_allowed and room > MIN_RESULT_CHARS:
        room = max(room * 2 // 3, MIN_RESULT_CHARS)
        fitting = cut(text, room, "the context has no room for more; ask for a smaller part")
    return fitting


def _outcome_of(output: ToolOutput) -> Outcome:
    if not output.is_error:
        return "ok"
    outcomes: dict[str, Outcome] = {
        "unknown_tool": "unknown_tool",
        "invalid_arguments": "invalid_arguments",
        "timeout": "timeout",
        "crash": "crashed",
    }
    return outcomes.get(output.data.get("failure", ""), "error")


def _result(call: Call, outcome: Outcome, text: str) -> CallResult:
    return CallResult(call.id, call.name or "", text, outcome)
