"""What the sandbox's Python runs: clears its descriptors, greets the host, then becomes the supervisor.

Small, because nothing is compiled ahead inside: the host goes on after the greeting while the rest is still loading.
Usage: boot.py PEER_FD IN_FD OUT_FD WORKSPACE MODE. PEER_FD is a pidfd of the host (-1: none), MODE is `namespace` (we
are PID 1) or `tree` (our descendants are ours, nothing else is).
"""

# ruff: noqa: SIM105 (contextlib is slow to import)

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import posix
import sys

READY = b"\0\0\0\x09\0\0\0\x05ready"  # wire.pack(b"ready")


def main() -> None:
    if sys.argv[5] == "namespace" and posix.getpid() != 1:
        raise SystemExit("the supervisor of a namespace ends every process it sees: it must be PID 1")
    peer, control_in, control_out = (int(argument) for argument in sys.argv[1:4])
    if control_in < 3:  # a pipe transport: keep foreign programs off it
        control_in, control_out = posix.dup(control_in), posix.dup(control_out)
    close_others({peer, control_in, control_out})
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)
    greet(control_in, control_out, sys.argv[4])
    sys.path.insert(0, __file__.rpartition("/")[0])
    from supervisor import Supervisor  # type: ignore[import-not-found]

    supervisor = Supervisor(peer, control_in, control_out, *sys.argv[4:6])
    if sys.argv[5] == "tree":  # PID 1 takes no signal that has no handler: those inside could send it
        _signal.signal(_signal.SIGTERM, lambda number, frame: supervisor.leave())
    supervisor.run()


def close_others(keep: set[int]) -> None:
    """Nothing is inherited but the channel and the pidfd; the three streams lead nowhere."""
    nothing = posix.open("/dev/null", posix.O_RDWR)
    for target in (0, 1, 2):
        posix.dup2(nothing, target)
    for fd in [int(name) for name in posix.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in keep:
            try:
                posix.close(fd)
            except OSError:  # the descriptor of the listing itself
                pass


def greet(control_in: int, control_out: int, workspace: str) -> None:
    """`ready`, with a descriptor of the workspace where the channel is a socket and can carry one."""
    if control_in != control_out:
        posix.write(control_out, READY)
        return
    directory = posix.open(workspace, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    channel = _socket.socket(fileno=posix.dup(control_out))
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, directory.to_bytes(4, sys.byteorder))]
    channel.sendmsg([READY], rights)
    channel.close()
    posix.close(directory)


main()
