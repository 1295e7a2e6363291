"""The exceptions of sandboxes.

SandboxError
├── SandboxUnavailable     no isolation works here; the message says why and what helps
├── SandboxClosed          a call after close, or the sandbox died
└── SandboxFileError       a path that may not be read or written
"""

from __future__ import annotations


class SandboxError(Exception):
    """Base of everything that sandboxes raise on purpose."""


class SandboxUnavailable(SandboxError):
    """Nothing was run: no sandbox works on this machine."""


class SandboxClosed(SandboxError):
    """The sandbox is closed or has died."""


class SandboxFileError(SandboxError):
    """A file that may not be read or written: outside the workspace, a link, not regular, too large."""
