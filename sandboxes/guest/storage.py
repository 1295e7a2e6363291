"""The sandbox's own storage: how much of it is used, and how to empty it."""

from __future__ import annotations

import posix


def used_bytes(directory: str) -> int:
    stat = posix.statvfs(directory)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def empty(directory: str) -> None:
    """Delete everything below, without recursion: what lies deep is first moved to the top, under a name of our own."""
    posix.chmod(directory, 0o700)
    prefix = f"{directory}/.{posix.urandom(12).hex()}-"
    count = 0
    while names := posix.listdir(directory):
        for name in names:
            path = directory + "/" + name
            if _unlinked(path):
                continue
            for child in posix.listdir(path):
                below = path + "/" + child
                if not _unlinked(below):
                    count += 1
                    posix.rename(below, prefix + str(count))
            posix.rmdir(path)


def _unlinked(path: str) -> bool:
    """Whether it is gone; if not, it is a directory, and open to us now."""
    try:
        posix.unlink(path)
    except (IsADirectoryError, PermissionError):
        posix.chmod(path, 0o700)
        return False
    return True
