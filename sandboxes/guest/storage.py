"""The sandbox's own storage: how much of it is used, and how to empty it."""

from __future__ import annotations

import posix


def used_bytes(directory: str) -> int:
    stat = posix.statvfs(directory)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def empty(directory: str) -> None:
    """Delete everything below, without recursion: what lies deep is first moved to the top."""
    count = 0
    while True:
        names = posix.listdir(directory)
        if not names:
            return
        for name in names:
            path = directory + "/" + name
            try:
                posix.unlink(path)
                continue
            except (IsADirectoryError, PermissionError):
                posix.chmod(path, 0o700)
            for child in posix.listdir(path):
                below = path + "/" + child
                try:
                    posix.unlink(below)
                except (IsADirectoryError, PermissionError):
                    count += 1
                    posix.chmod(below, 0o700)
                    posix.rename(below, f"{directory}/.v32-empty-{count}")
            posix.rmdir(path)
