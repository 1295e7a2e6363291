"""Which Python runs inside the sandbox, and which folders of the host it needs there."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from v32.sandboxes.errors import SandboxUnavailable

USUAL = ("/usr/bin/python3", "/usr/local/bin/python3")


@dataclass(frozen=True)
class Interpreter:
    """Its path, and what must be visible beside /usr."""

    path: str
    folders: tuple[str, ...] = ()


def find_interpreter(wanted: str | None, *, as_other_user: bool) -> Interpreter:
    """The wanted one, else the system's, else the one that runs us; reachable by the user the sandbox runs as."""
    candidates = [wanted] if wanted else [*USUAL, os.path.realpath(sys.executable)]
    problems = []
    for path in candidates:
        interpreter = Interpreter(path, _folders(path))
        if not os.access(path, os.X_OK):
            problems.append(f"{path} is not an executable file")
        elif as_other_user and (closed := _closed_folder(path, *interpreter.folders)):
            problems.append(f"{path} lies in {closed}, which other users may not enter")
        else:
            return interpreter
    raise SandboxUnavailable(
        f"no Python for the sandbox: {'; '.join(problems)}. "
        "Install the system's python3, or name another with SandboxPolicy(python='/path/bin/python3')"
    )


def _folders(path: str) -> tuple[str, ...]:
    """The prefixes of the interpreter, of a virtual environment and of what it links to, outside /usr."""
    prefixes = (Path(place).parent.parent for place in (os.path.abspath(path), os.path.realpath(path)))
    return tuple(dict.fromkeys(str(prefix) for prefix in prefixes if not prefix.is_relative_to("/usr")))


def _closed_folder(*paths: str) -> str | None:
    """The first folder on the way that only its owner may enter."""
    for path in paths:
        for folder in reversed(Path(os.path.realpath(path)).parents):
            if not folder.stat().st_mode & 0o001:
                return str(folder)
    return None
