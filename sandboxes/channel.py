"""The host's end of a supervisor: frames out, frames in, never blocking, with a wake-up for cancellation.

One epoll descriptor stands for everything a call waits for, so that the event loop watches a single descriptor and no
task or thread is needed per sandbox.
"""

from __future__ import annotations

import contextlib
import os
import select

import anyio

from v32.sandboxes.guest.wire import MAX_TO_HOST, Frames, pack

PIECE = 256 << 10


class ChannelClosed(Exception):
    """The supervisor has gone."""


class Channel:
    """Frames over a socket (both descriptors the same) or a pair of pipes; owns the descriptors."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._frames = Frames(MAX_TO_HOST)
        self._unsent = bytearray()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        for fd in {read_fd, write_fd}:
            os.set_blocking(fd, False)
        self._epoll.register(read_fd, select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._watches_write = False
        self._closed = False

    def send(self, *fields: bytes) -> None:
        """Queue a frame and write what goes without blocking; `receive` writes the rest."""
        self.send_raw(pack(*fields))

    def send_raw(self, frame: bytes) -> None:
        """As `send`, of a frame that is packed already."""
        self._unsent += frame
        self._flush()

    def wake(self) -> None:
        """Make a waiting `receive` return."""
        if not self._closed:
            os.eventfd_write(self._wake, 1)

    async def receive(self, deadline: float | None) -> list[list[bytes]]:
        """The next frames; an empty list at the deadline (`anyio.current_time`) or after `wake`.

        Raises `ChannelClosed` when the supervisor has hung up, `FrameError` when it talks nonsense.
        """
        if self._closed:
            raise ChannelClosed
        events = self._epoll.poll(0)
        if not events:
            with anyio.move_on_at(deadline if deadline is not None else float("inf")):
                await anyio.wait_readable(self._epoll.fileno())
            events = [] if self._closed else self._epoll.poll(0)
        for fd, _ in events:
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
        self._flush()
        return self._read() if any(fd == self._read_fd for fd, _ in events) else []

    def close(self) -> None:
        """Hang up: the supervisor sees the end of the channel and exits."""
        if self._closed:
            return
        self._closed = True
        self._epoll.close()
        for fd in {self._read_fd, self._write_fd, self._wake}:
            os.close(fd)

    def _read(self) -> list[list[bytes]]:
        try:
            data = os.read(self._read_fd, PIECE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ChannelClosed from error
        if not data:
            raise ChannelClosed
        return self._frames.feed(data)

    def _flush(self) -> None:
        try:
            while self._unsent:
                written = os.write(self._write_fd, self._unsent[:PIECE])
                del self._unsent[:written]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # the reading side will notice
        self._watch_write(bool(self._unsent))

    def _watch_write(self, on: bool) -> None:
        if on == self._watches_write:
            return
        self._watches_write = on
        events = select.EPOLLOUT if on else 0
        if self._read_fd == self._write_fd:
            self._epoll.modify(self._read_fd, select.EPOLLIN | events)
        elif on:
            self._epoll.register(self._write_fd, events)
        else:
            self._epoll.unregister(self._write_fd)
