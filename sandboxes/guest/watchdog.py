"""Memory of the sandbox where no control group counts it: process ids in, over the limit or not out.

Exact where it can be, an upper bound where a process hides or the kernel does not say:

    private        resident, swapped out, and the page tables, of each process
    shared         every shared mapping whole, each object once: its pages need not be resident anywhere
    hidden         a process whose mappings cannot be read, or are too many to read, counts with its address space
    workspace      what its file systems hold
    the kernel's   socket and pipe buffers and locks belong to no process: where the sandbox has many descriptors open,
                   growth of the whole machine's over the least since the call began, against the same limit by itself;
                   pages that processors keep at hand, hundreds of megabytes once others have ended, are free
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
PRIVATE = (b"RssAnon", b"VmSwap", b"VmPTE")
MANY_DESCRIPTORS = 64
USERS = (b"MemFree", b"Buffers", b"Cached", b"SwapCached", b"AnonPages", b"SReclaimable")


class Watchdog:
    """Looks when asked, but spends no more than a tenth of a processor. `members()` lists the processes to count."""

    def __init__(self, limit: int, pools: list[str], members: Callable[[], list[int]]) -> None:
        self._limit, self._members = limit, members
        self._pools = {posix.stat(directory).st_dev: directory for directory in pools}
        self._next = 0.0
        self._kernel_least = kernel_bytes()

    def begin(self) -> None:
        """A call begins: what the kernel holds now is not its doing."""
        self._kernel_least = kernel_bytes()

    def is_over(self) -> bool:
        now, cpu = time.monotonic(), time.process_time()
        if now < self._next:
            return False
        pids = self._members()
        used = sum(private_bytes(pid) for pid in pids) + self._shared_bytes(pids)
        used += sum(used_bytes(directory) for directory in self._pools.values())
        is_over = used > self._limit or (self._has_the_kernel_grown() and descriptors(pids) >= MANY_DESCRIPTORS)
        self._next = now + max(PAUSE_SECONDS, 10 * (time.process_time() - cpu))
        return is_over

    def _has_the_kernel_grown(self) -> bool:
        """Over the least it was: what others have given back meanwhile is no allowance."""
        now = kernel_bytes()
        self._kernel_least = min(self._kernel_least, now)
        return now - self._kernel_least > self._limit

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


def private_bytes(pid: int) -> int:
    return sum(_sizes(f"/proc/{pid}/status", PRIVATE).values())


def descriptors(pids: list[int]) -> int:
    """How many are open; a process that hides them has many."""
    count = 0
    for pid in pids:
        try:
            count += len(posix.listdir(f"/proc/{pid}/fd"))
        except OSError:
            count += MANY_DESCRIPTORS
    return count


def address_space_bytes(pid: int) -> int:
    fields = read(f"/proc/{pid}/statm").split()
    return int(fields[0]) * PAGE if fields else 0


def kernel_bytes() -> int:
    """What is neither free, nor user memory, nor a cache that shrinks on demand; of the whole machine."""
    sizes = _sizes("/proc/meminfo", (b"MemTotal", *USERS))
    return sizes.pop(b"MemTotal", 0) - sum(sizes.values()) - _bytes_at_hand()


def _bytes_at_hand() -> int:
    """Free pages in the lists of single processors, which the kernel does not count as free."""
    lines = (line.partition(b":") for line in read("/proc/zoneinfo").splitlines())
    return PAGE * sum(int(text) for name, _, text in lines if name.strip() == b"count")


def _sizes(path: str, names: tuple[bytes, ...]) -> dict[bytes, int]:
    """Of the lines `name: number kB`, those asked for, in bytes."""
    lines = (line.partition(b":") for line in read(path).splitlines())
    return {name: int(text.split()[0]) << 10 for name, _, text in lines if name in names}
