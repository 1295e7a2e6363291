"""An append-only file of JSON lines: a header, then one record per durable event, each on disk before it is acted on.

    {"type":"header","format":"v32-journal","version":1,"session_id":…,"model":…,"tokenizer":…,"tools":[…]}
    {"n":1,"at":1764000000.1,"type":"user_said",…}
    {"n":2,…

A line is written in one go and synced. If the machine or the process dies in the middle of it, the torn last line
is cut off when the journal is continued: nothing has acted on it. Damage anywhere else is an error that names the line.
Knows records, not events.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from v32.agent.errors import JournalError
from v32.agent.records import Record, to_line

FORMAT = "v32-journal"
VERSION = 1


class JournalContents(NamedTuple):
    """What a journal file holds; `intact_bytes` is its length without a torn last line."""

    header: Record
    records: list[Record]
    intact_bytes: int


class Journal:
    """The journal at one path, held open and locked from `create` or `open` until `close`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        self._count = 0

    def create(self, header: Mapping[str, Any]) -> None:
        """Start a new file; `JournalError` if one is there."""
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except FileExistsError:
            hint = "continue it with Session.resume (on the command line: --resume), or choose another path"
            raise JournalError(f"{self.path} exists; {hint}") from None
        except OSError as error:
            raise JournalError(f"cannot create the journal {self.path}: {error.strerror}") from error
        self._lock()
        self._write({"type": "header", "format": FORMAT, "version": VERSION, **header})
        _sync_folder(self.path.parent)

    def open(self) -> JournalContents:
        """Read an existing file, cut off a torn last line and get ready to append."""
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            raise JournalError(f"cannot open the journal {self.path}: {error.strerror}") from error
        try:
            self._lock()
            contents = read_journal(self.path)
            os.ftruncate(self._descriptor, contents.intact_bytes)
        except BaseException:
            self.close()
            raise
        self._count = len(contents.records)
        return contents

    def append(self, record: Mapping[str, Any]) -> None:
        """Put a record on disk; it is there when this returns."""
        self._write({"n": self._count + 1, "at": round(time.time(), 3), **record})
        self._count += 1

    def close(self) -> None:
        if self._descriptor is not None:
            # Closing alone leaves the lock to workers that were forked meanwhile.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            raise JournalError(f"the journal {self.path} is closed")
        line = (to_line(record) + "\n").encode("utf-8", "surrogatepass")
        before = os.fstat(self._descriptor).st_size
        try:
            _write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise JournalError(f"cannot write to the journal {self.path}: {error.strerror}") from error

    def _lock(self) -> None:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise JournalError(f"{self.path} is in use by another session; wait for it or stop it") from None


def read_journal(path: str | os.PathLike[str]) -> JournalContents:
    """Read a journal without touching it; `JournalError` names the line that is damaged."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from error
    *lines, torn = data.split(b"\n")
    if not lines:
        raise JournalError(f"{path} holds no complete line, so nothing was recorded in it; delete it and start anew")
    rows = [_parse_line(line, number, path) for number, line in enumerate(lines, start=1)]
    _check_header(rows[0], path)
    for number, row in enumerate(rows[1:], start=1):
        if row.get("n") != number:
            raise JournalError(f"{path}, line {number + 1}: record {row.get('n')} where {number} was expected")
    return JournalContents(rows[0], rows[1:], len(data) - len(torn))


def _parse_line(line: bytes, number: int, path: str | os.PathLike[str]) -> Record:
    try:
        row = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise JournalError(f"{path}, line {number} is damaged: {error}; restore the file from a copy") from error
    if not isinstance(row, dict):
        raise JournalError(f"{path}, line {number} is damaged: no JSON object; restore the file from a copy")
    return row


def _check_header(header: Record, path: str | os.PathLike[str]) -> None:
    if header.get("format") != FORMAT:
        raise JournalError(f"{path} is no v32 journal: its first line does not say so")
    if header.get("version") != VERSION:
        raise JournalError(
            f"{path} has journal version {header.get('version')}, this v32 reads {VERSION}; use the v32 that wrote it"
        )


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
