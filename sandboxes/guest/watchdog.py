"""Memory of the sandbox where no control group counts it: process ids in, over the limit or not out.

Exact where it can be, an upper bound where a process hides or the kernel does not say:

    anonymous      resident, of each process
    shared         every shared mapping whole, each object once: its pages need not be resident anywhere
    hidden         a process whose mappings cannot be read, or are too many to read, counts with its address space
    workspace      what its file systems hold
    the kernel's   growth of the whole machine's since the call began, against the same limit by itself: socket and
                   pipe buffers, page tables, locks belong to no process
"""

from __future__ import annotations

import posix
import time

from processes import PAGE, read  # type: ignore[import-not-found]
from storage import used_bytes  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:  # slow to import
    from collections.abc import Callable

PAUSE_SECONDS = 0.05
MAPS_BYTES = 1 << 20
USERS = (b"MemFree", b"Buffers", b"Cached", b"SwapCached", b"AnonPages", b"SReclaimable")


class Watchdog:
    """Looks when asked, but spends no more than a tenth of a processor. `members()` lists the processes to count."""

    def __init__(self, limit: int, pools: list[str], members: Callable[[], list[int]]) -> None:
        self._limit, self._members = limit, members
        self._pools = {posix.stat(directory).st_dev: directory for directory in pools}
        self._next = 0.0
        self._kernel_before = kernel_bytes()

    def begin(self) -> None:
        """A call begins: what the kernel holds now is not its doing."""
        self._kernel_before = kernel_bytes()

    def is_over(self) -> bool:
        now, cpu = time.monotonic(), time.process_time()
        if now < self._next:
            return False
        pids = self._members()
        used = sum(anonymous_bytes(pid) for pid in pids) + self._shared_bytes(pids)
        used += sum(used_bytes(directory) for directory in self._pools.values())
        grown = kernel_bytes() - self._kernel_before
        self._next = now + max(PAUSE_SECONDS, 10 * (time.process_time() - cpu))
        return used > self._limit or grown > self._limit

    def _shared_bytes(self, pids: list[int]) -> int:
        pools = {b"%02x:%02x" % (posix.major(device), posix.minor(device)) for device in self._pools}
        objects: dict[tuple[bytes, bytes], int] = {}
        hidden = 0
        for pid in pids:
            maps = read(f"/proc/{pid}/maps", MAPS_BYTES)
            if not maps or len(maps) >= MAPS_BYTES:
                hidden += address_space_bytes(pid)
                continue
            for line in maps.splitlines():
                if b"s " in line[:64]:
                    span, permissions, _, device, inode = line.split(None, 5)[:5]
                    if permissions.endswith(b"s") and device not in pools:
                        first, _, last = span.partition(b"-")
                        size = int(last, 16) - int(first, 16)
                        objects[device, inode] = max(objects.get((device, inode), 0), size)
        return hidden + sum(objects.values())


def anonymous_bytes(pid: int) -> int:
    fields = read(f"/proc/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * PAGE if len(fields) > 2 else 0


def address_space_bytes(pid: int) -> int:
    fields = read(f"/proc/{pid}/statm").split()
    return int(fields[0]) * PAGE if fields else 0


def kernel_bytes() -> int:
    """What is neither free, nor user memory, nor a cache that shrinks on demand; of the whole machine."""
    lines = dict(line.split(b":", 1) for line in read("/proc/meminfo").splitlines() if b":" in line)
    sizes = {name: int(lines[name].split()[0]) << 10 for name in (b"MemTotal", *USERS) if name in lines}
    return sizes.pop(b"MemTotal", 0) - sum(sizes.values())
