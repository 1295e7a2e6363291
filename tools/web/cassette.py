"""What the web answered, kept on disk, so that an evaluation can be repeated: key in, recorded answer out.

"off"       nothing is read or written
"record"    every answer is fetched and written over what was there
"cache"     recorded answers are used, the others fetched and recorded
"replay"    recorded answers are used, the others are an error; the network is never touched
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from v32.tools.tool import ToolError

Mode = Literal["off", "record", "cache", "replay"]


class Cassette:
    """One folder, one JSON file for each answer; several processes may share it."""

    def __init__(self, folder: str | Path | None = None, mode: Mode = "cache") -> None:
        self._folder = None if folder is None else Path(folder)
        self.mode: Mode = "off" if folder is None else mode

    async def answer(self, key: str, ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """The recorded answer for `key`, or that of `ask`. A `ToolError` of `ask` is recorded too, and raised again."""
        recorded = self._read(key) if self.mode in ("cache", "replay") else None
        if recorded is None and self.mode == "replay":
            raise ToolError(f"{key[:200]} is not in the recording; only recorded pages can be used in this run")
        if recorded is None:
            try:
                recorded = {"answer": await ask()}
            except ToolError as error:
                recorded = {"error": str(error)}
            if self.mode == "record" or (self.mode == "cache" and "answer" in recorded):
                self._write(key, recorded)
        if "error" in recorded:
            raise ToolError(recorded["error"])
        answer: dict[str, Any] = recorded["answer"]
        return answer

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}.json"

    def _read(self, key: str) -> dict[str, Any] | None:
        """None if there is no answer, or only a damaged one."""
        try:
            recorded = json.loads(self._path(key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return recorded if isinstance(recorded, dict) and recorded.get("key") == key else None

    def _write(self, key: str, recorded: dict[str, Any]) -> None:
        """Written beside and moved into place: a reader sees all of it or nothing."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with open(handle, "w", encoding="utf-8", errors="surrogatepass") as file:
                json.dump({"key": key, **recorded}, file)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
