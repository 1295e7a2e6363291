"""The loop of a run on one screen: make room, complete, run the calls, return their results, until there is an answer.

Everything that happens is recorded in the session as it happens; whoever cancels this function in the middle finds
there what has been done. What the model does wrong is a result that it reads; only the machine raises.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from v32.agent.answer import read_answer
from v32.agent.context import make_room
from v32.agent.events import Completed, Stopped, ToolsReturned
from v32.agent.execution import run_calls
from v32.agent.limits import StopReason, calls_left, reached
from v32.agent.sampling import sampling_of_turn, tool_choice_of_turn
from v32.model_runtime.errors import ContextOverflowError
from v32.model_runtime.messages import Completion

if TYPE_CHECKING:
    from v32.agent.session import Session
    from v32.tools.validation import Validator


async def take_turns(session: Session) -> Stopped:
    """Carry on from wherever the session stands: before a completion, after it, or between calls and results."""
    limits = session.agent.limits
    while True:
        if session.open_calls:
            may_call = calls_left(limits, session.account.progress)
            started = time.monotonic()
            await run_calls(session, may_call)
            session.record(ToolsReturned(session.open_calls.in_call_order(), time.monotonic() - started))
            if may_call == 0:
                return Stopped(StopReason.TOOL_CALL_LIMIT, f"called on after {limits.tool_calls} tool calls")
        elif answer := session.last_answer:
            return ended_by(answer, session.prelude.answer_validator)
        elif limit := reached(limits, session.account.progress):
            return Stopped(*limit)
        else:
            try:
                await make_room(session)
                session.record(Completed(await complete(session)))
            except ContextOverflowError as error:
                return Stopped(StopReason.CONTEXT_OVERFLOW, str(error))


async def complete(session: Session) -> Completion:
    """One completion of the transcript as it stands; its deltas are announced as they come."""
    model, agent = session.agent.model, session.agent
    items = model.complete(
        session.transcript,
        tool_choice=tool_choice_of_turn(agent, session.account.progress),
        params=sampling_of_turn(agent, session.account.progress),
    )
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Completion):
                return item
            session.announce(item)
    raise AssertionError("a chat model ends its stream with a Completion")


def ended_by(completion: Completion, validator: Validator | None = None) -> Stopped:
    """Why a completion without calls ends the run."""
    if completion.finish_reason == "length":
        return Stopped(StopReason.LENGTH, f"cut off after {len(completion.token_ids)} tokens")
    if not completion.parsed.content.strip():
        return Stopped(StopReason.EMPTY, "the model ended its turn without an answer")
    if validator and (problem := read_answer(completion.parsed.content, validator).problem):
        return Stopped(StopReason.INVALID_ANSWER, problem)
    return Stopped(StopReason.ANSWER)
