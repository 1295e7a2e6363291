"""The exceptions of agent: what the programmer or the machine did wrong. What the model does wrong is a result.

AgentError
├── JournalError     a journal that cannot be created, read or continued
└── SessionError     a session used in a way that cannot work: two runs at once, after close, in a running loop
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of everything that agent raises on purpose."""


class JournalError(AgentError):
    """A journal that cannot be created, read or continued; the message names the file and what helps."""


class SessionError(AgentError):
    """A session or agent used in a way that cannot work."""
