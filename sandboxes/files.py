"""A workspace on this machine, reached through the directory descriptor that the supervisor handed out."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio.to_thread

from v32.sandboxes import artefacts
from v32.sandboxes.errors import SandboxFileError
from v32.sandboxes.sandbox import FileEntry

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


class Listing(list[FileEntry]):
    """The entries found; `is_complete` is false when the workspace holds more than is listed."""

    is_complete: bool = True


class DirectoryFiles:
    """Owns the descriptor; `uid` is whose files the workspace holds when that is not the caller."""

    def __init__(self, directory: int, uid: int | None = None) -> None:
        self._directory, self._uid = directory, uid

    async def read(self, path: str, max_bytes: int) -> bytes:
        return await self._do(lambda root: artefacts.read(root, path, max_bytes))

    async def write(self, path: str, data: bytes) -> None:
        await self._do(lambda root: artefacts.write(root, path, data))

    async def entries(self) -> Listing:
        stats, paths, is_complete = await self._do(artefacts.walk)
        listing = Listing(
            FileEntry(path, status.st_size, stat.S_ISDIR(status.st_mode), status.st_mtime)
            for status, path in zip(stats, paths)
        )
        listing.is_complete = is_complete
        return listing

    def is_full(self) -> bool:
        """No block or no inode left."""
        status = os.fstatvfs(self._directory)
        return status.f_bfree == 0 or (status.f_files > 0 and status.f_ffree == 0)

    def close(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    async def _do(self, work: Callable[[int], T]) -> T:
        """In a thread of its own: a large file does not hold up the event loop."""
        root = os.dup(self._directory)

        def attempt() -> T:
            with _as_user(self._uid):
                return work(root)

        try:
            return await anyio.to_thread.run_sync(attempt)
        except artefacts.ArtefactError as error:
            raise SandboxFileError(str(error)) from None
        finally:
            os.close(root)


@contextmanager
def _as_user(uid: int | None) -> Iterator[None]:
    """File access as another user, for this thread only: root's own uid has no meaning in the sandbox's file system."""
    if uid is None:
        yield
        return
    _libc.setfsgid(uid)
    _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())
