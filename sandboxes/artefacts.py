"""Files of a workspace, reached from an open directory and never through a path the sandbox could bend.

Every open starts at the directory descriptor and resolves beneath it without following any link and without crossing
a mount (openat2). What comes out is a regular file's bytes within a limit; a FIFO does not block, a growing file does
not run away. Archives are never unpacked here.

The file also runs as a program inside a container, where no descriptor can be handed out:
`python3 artefacts.py DIRECTORY (read PATH MAX | write PATH | list)`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator

OPENAT2 = 437  # the same on every architecture
RESOLVE = 0x01 | 0x02 | 0x04 | 0x08  # no other mount, no magic links, no symlinks, beneath the directory
MAX_ENTRIES, MAX_DEPTH = 2_000, 8
MAX_LOOKED_AT = 20_000  # a directory that grows while it is read has no end
PIECE = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class ArtefactError(Exception):
    """A path that may not be read or written; the message names it and says what to do instead."""


class OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def read(root: int, path: str, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most `max_bytes`."""
    with _opened(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as fd:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ArtefactError(f"{path}: is {_kind(status.st_mode)}; only regular files are returned")
        if status.st_size > max_bytes:
            raise ArtefactError(f"{path}: has {status.st_size:,} bytes; at most {max_bytes:,} are returned")
        data = bytearray()
        while len(data) <= max_bytes:
            piece = os.read(fd, min(PIECE, max_bytes + 1 - len(data)))
            if not piece:
                return bytes(data)
            data += piece
    raise ArtefactError(f"{path}: grew beyond {max_bytes:,} bytes while it was read")


def write(root: int, path: str, data: bytes) -> None:
    """Put a regular file there, with its parents; it replaces what stood there and follows nothing."""
    names = _names(path)
    directory = os.dup(root)
    temporary = f".v32-{os.urandom(8).hex()}"
    try:
        for name in names[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=directory)
            parent, directory = directory, _open(directory, name, os.O_RDONLY | os.O_DIRECTORY, path)
            os.close(parent)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory)
        try:
            _write_all(fd, data)
            os.rename(temporary, names[-1], src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise _explained(path, error) from None
    finally:
        os.close(directory)


def walk(
    root: int, max_entries: int = MAX_ENTRIES, max_depth: int = MAX_DEPTH
) -> tuple[list[os.stat_result], list[str], bool]:
    """Regular files and directories below, breadth first: their stats, their paths, and whether some are missing."""
    stats: list[os.stat_result] = []
    paths: list[str] = []
    level, looked_at = [""], 0
    for _ in range(max_depth):
        below: list[str] = []
        for prefix in level:
            for name, status in _entries(root, prefix):
                looked_at += 1
                if len(paths) >= max_entries or looked_at > MAX_LOOKED_AT:
                    return stats, paths, False
                if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                    stats.append(status)
                    paths.append(prefix + name)
                if stat.S_ISDIR(status.st_mode):
                    below.append(prefix + name + "/")
        level = below
    return stats, paths, not level


def _entries(root: int, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Of one directory, in the order it keeps them; what vanishes meanwhile is left out."""
    try:
        fd = _open(root, prefix.rstrip("/") or ".", os.O_RDONLY | os.O_DIRECTORY, prefix)
    except (OSError, ArtefactError):
        return
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    yield entry.name, entry.stat(follow_symlinks=False)
    finally:
        os.close(fd)


def _names(path: str) -> list[str]:
    """The components of a relative path; an absolute one below /workspace counts as relative."""
    inside = path.removeprefix("/workspace/")
    names = [name for name in inside.split("/") if name not in ("", ".")]
    if inside.startswith("/") or ".." in names:
        raise ArtefactError(f"{path}: lies outside the workspace; give a path below it")
    if not names or "\0" in path or not is_encodable(path):
        raise ArtefactError(f"{path!r}: is not the name of a file")
    return names


def is_encodable(path: str) -> bool:
    """Half a surrogate pair names nothing, unless it stands for a byte, as in listings of names that are no text."""
    try:
        return bool(os.fsencode(path))
    except UnicodeEncodeError:
        return False


@contextlib.contextmanager
def _opened(root: int, path: str, flags: int) -> Iterator[int]:
    try:
        fd = _open(root, "/".join(_names(path)), flags, path)
    except OSError as error:
        raise _explained(path, error) from None
    try:
        yield fd
    finally:
        os.close(fd)


def _open(root: int, relative: str, flags: int, shown: str) -> int:
    how = OpenHow(flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0, RESOLVE)
    for _ in range(16):  # EAGAIN: a rename raced with the lookup
        name = ctypes.c_char_p(os.fsencode(relative))
        fd = _libc.syscall(OPENAT2, root, name, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
        if fd >= 0:
            return int(fd)
        number = ctypes.get_errno()
        if number != errno.EAGAIN:
            raise OSError(number, os.strerror(number))
    raise ArtefactError(f"{shown}: keeps changing while it is opened")


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest[:PIECE]) :]


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _explained(path: str, error: OSError) -> ArtefactError:
    reasons = {
        errno.ELOOP: "is or passes through a symbolic link; links are not followed, copy the file instead",
        errno.EXDEV: "lies outside the workspace; give a path below it",
        errno.ENXIO: "is a socket or a pipe; only regular files are returned",
        errno.ENOENT: "there is no such file in the workspace",
        errno.ENOTDIR: "passes through something that is not a directory",
        errno.EISDIR: "is a directory",
        errno.ENOSPC: "the workspace is full; delete files first",
        errno.EDQUOT: "the workspace is full; delete files first",
        errno.ENAMETOOLONG: "the name is too long",
    }
    return ArtefactError(f"{path[:200]}: {reasons.get(error.errno or 0, error.strerror)}")


def main(arguments: list[str]) -> int:
    """Inside a container: bytes and `size is_dir modified path NUL` records over stdin and stdout."""
    root = os.open(arguments[0], os.O_RDONLY | os.O_DIRECTORY)
    try:
        if arguments[1] == "read":
            sys.stdout.buffer.write(read(root, arguments[2], int(arguments[3])))
        elif arguments[1] == "write":
            write(root, arguments[2], sys.stdin.buffer.read())
        else:
            stats, paths, complete = walk(root)
            for status, path in zip(stats, paths):
                record = f"{status.st_size} {int(stat.S_ISDIR(status.st_mode))} {status.st_mtime} ".encode()
                sys.stdout.buffer.write(record + os.fsencode(path) + b"\0")
            sys.stdout.buffer.write(b"" if complete else b"...\0")
    except ArtefactError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
