"""What happens when a conversation fills the context: the strategies of the V3.2 report (section 4.4), by name.

    discard-75%   drop the first 75% of the tool calls with their results (the last one always stays)
    discard-all   drop all of them: the model starts again from the user's question
    summary       drop all of them and put the model's own summary under the user's question
    none          drop nothing; the run ends with `context_overflow` when the context is full

They act before a completion, once the prompt exceeds 80% of the context. User messages and answers always stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

from v32.agent.events import Completed, Rebased, Spoken, ToolsReturned
from v32.model_runtime.errors import ContextOverflowError
from v32.model_runtime.messages import Completion, Usage

if TYPE_CHECKING:
    from v32.agent.session import Session

Strategy = Literal["discard-75%", "discard-all", "summary", "none"]

SUMMARY_REQUEST = (
    "The conversation has become too long to go on. Write down, in short, everything found out so far that helps to "
    "answer my question: facts with their sources, results of computations, what was tried and failed, and what is "
    "still to be done. Do not call tools. The steps above will be deleted; only your summary stays."
)
SUMMARY_HEADING = "What you have found out so far (your earlier steps were deleted to save space):"


@dataclass(frozen=True, slots=True)
class ContextPolicy:
    """When and how a conversation is shortened, and how much of the context one tool result may take."""

    strategy: Strategy = "discard-75%"
    threshold: float = 0.8
    """Share of the context at which the strategy acts."""
    result_share: float = 0.25
    """A tool result beyond this share of the context is cut in the middle."""

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"unknown context strategy {self.strategy!r}; known: {', '.join(get_args(Strategy))}")
        for name in ("threshold", "result_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"ContextPolicy.{name} is {getattr(self, name)}; it must lie in (0, 1]")


async def make_room(session: Session) -> None:
    """Shorten the session until the next completion has room; `ContextOverflowError` if nothing helps."""
    policy, max_context = session.agent.context, session.agent.model.max_context
    while len(session.transcript) > policy.threshold * max_context:
        kept = kept_by(policy.strategy, session.history)
        if kept is None:
            break
        session.record(await _rebase(session, policy.strategy, kept))
    if len(session.transcript) >= max_context:
        raise ContextOverflowError(len(session.transcript), max_context)


def kept_by(strategy: Strategy, history: Sequence[Spoken]) -> tuple[int, ...] | None:
    """Positions in `history` that a strategy keeps; None if it has nothing to drop."""
    steps = [
        (position, position + 1)
        for position, (event, following) in enumerate(pairwise(history))
        if isinstance(event, Completed) and isinstance(following, ToolsReturned)
    ]
    share = {"discard-75%": 0.75, "discard-all": 1.0, "summary": 1.0, "none": 0.0}[strategy]
    dropped = {position for step in steps[: int(share * len(steps))] for position in step}
    return tuple(position for position in range(len(history)) if position not in dropped) if dropped else None


async def _rebase(session: Session, strategy: Strategy, kept: tuple[int, ...]) -> Rebased:
    note, usage = await _summarise(session) if strategy == "summary" else ("", Usage())
    return Rebased(
        strategy,
        kept,
        note=note,
        usage=usage,
        tokens_before=len(session.transcript),
        tokens_after=len(session.transcript_of(session.shortened(kept, note))),
    )


async def _summarise(session: Session) -> tuple[str, Usage]:
    """The model's own summary as a note; empty if it has none to give or no room to write it."""
    transcript = session.transcript.fork()
    transcript.append_user(SUMMARY_REQUEST)
    try:
        async with aclosing(session.agent.model.complete(transcript, tool_choice="none")) as items:
            async for item in items:
                if isinstance(item, Completion):
                    summary = item.parsed.content.strip()
                    return (f"{SUMMARY_HEADING}\n{summary}" if summary else ""), item.usage
    except ContextOverflowError:
        pass
    return "", Usage()
