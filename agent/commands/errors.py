"""What a command tells its user in one line."""

from __future__ import annotations


class UsageError(Exception):
    """An option that makes no sense; the message names it and what would."""
