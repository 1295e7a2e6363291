"""The agent: a model, tools and the loop between them. Importing this package loads nothing heavy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v32.agent.agent import Agent
    from v32.agent.context import ContextPolicy
    from v32.agent.errors import AgentError, JournalError, SessionError
    from v32.agent.events import (
        CallResult,
        Completed,
        Durable,
        Event,
        Rebased,
        Stopped,
        ToolFinished,
        ToolsReturned,
        ToolStarted,
        UserSaid,
    )
    from v32.agent.journal import Journal, read_journal
    from v32.agent.limits import Limits, StopReason
    from v32.agent.result import RunResult, Step
    from v32.agent.session import Session
    from v32.model_runtime.messages import ContentDelta, ReasoningDelta

_MODULE_OF = {
    "Agent": ".agent",
    "AgentError": ".errors",
    "CallResult": ".events",
    "Completed": ".events",
    "ContentDelta": "v32.model_runtime.messages",
    "ContextPolicy": ".context",
    "Durable": ".events",
    "Event": ".events",
    "Journal": ".journal",
    "JournalError": ".errors",
    "Limits": ".limits",
    "ReasoningDelta": "v32.model_runtime.messages",
    "Rebased": ".events",
    "RunResult": ".result",
    "Session": ".session",
    "SessionError": ".errors",
    "Step": ".result",
    "StopReason": ".limits",
    "Stopped": ".events",
    "ToolFinished": ".events",
    "ToolStarted": ".events",
    "ToolsReturned": ".events",
    "UserSaid": ".events",
    "read_journal": ".journal",
}

__all__ = [
    "Agent",
    "AgentError",
    "CallResult",
    "Completed",
    "ContentDelta",
    "ContextPolicy",
    "Durable",
    "Event",
    "Journal",
    "JournalError",
    "Limits",
    "ReasoningDelta",
    "Rebased",
    "RunResult",
    "Session",
    "SessionError",
    "Step",
    "StopReason",
    "Stopped",
    "ToolFinished",
    "ToolStarted",
    "ToolsReturned",
    "UserSaid",
    "read_journal",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
