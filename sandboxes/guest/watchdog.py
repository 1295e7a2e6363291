"""Memory of the sandbox where no control group counts it: process ids in, over the limit or not out.

Exact where it can be, an upper bound where a process hides or the kernel does not say:

    private        resident, swapped out, and the page tables, of each process
    shared         each object once, up to the last page that is mapped: it need not be resident anywhere. Until that
                   matters, and of a process that hides or has too many mappings: all that is mapped and not private
    workspace      what its file systems hold
    unmapped       shared pages that no process maps any more: where the sandbox maps such an object at all, growth of
                   the whole machine's shared memory, without our workspace
    the kernel's   socket and pipe buffers and locks belong to no process: where the sandbox has many descriptors open,
                   growth of the whole machine's, by itself

Growth is over the least since the call began, against the same limit. Pages that processors keep at hand, hundreds of
megabytes once others have ended, are free. Huge pages, which would stay whole while one page of them is used, are
switched off by the launcher, for good.
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
MAPS_BYTES = 1 << 20  # a hundredth of a second, for all processes together
PRIVATE = (b"RssAnon", b"VmSwap", b"VmPTE", b"HugetlbPages")
NOT_SHARED = (b"VmData", b"VmStk")  # what counts as code may be shared
MANY_DESCRIPTORS = 64
USERS = (b"MemFree", b"Buffers", b"Cached", b"SwapCached", b"AnonPages", b"SReclaimable")


class Watchdog:
    """Looks when asked, but spends no more than a tenth of a processor. `members()` lists the processes to count."""

    def __init__(self, limit: int, pools: list[str], members: Callable[[], list[int]]) -> None:
        self._limit, self._members = limit, members
        self._pools = {posix.stat(directory).st_dev: directory for directory in pools}
        self._next = 0.0
        self.begin()

    def begin(self) -> None:
        """A call begins: what the machine holds now is not its doing."""
        self._kernel, self._shared = Growth(kernel_bytes()), Growth(shared_bytes() - self._pool_bytes())

    def is_over(self) -> bool:
        now, cpu = time.monotonic(), time.process_time()
        if now < self._next:
            return False
        processes = {pid: status(pid) for pid in self._members()}
        pool = self._pool_bytes()
        room = self._limit - pool - sum(size[name] for size in processes.values() for name in PRIVATE if name in size)
        has_shared_grown = self._shared.to(shared_bytes() - pool) > self._limit
        has_kernel_grown = self._kernel.to(kernel_bytes()) > self._limit
        shared = self._shared_bytes(processes, 0 if has_shared_grown else room)
        is_over = shared > room or (has_shared_grown and shared > 0)
        is_over |= has_kernel_grown and descriptors(list(processes)) >= MANY_DESCRIPTORS
        self._next = now + max(PAUSE_SECONDS, 10 * (time.process_time() - cpu))
        return is_over

    def _pool_bytes(self) -> int:
        return sum(used_bytes(directory) for directory in self._pools.values())

    def _shared_bytes(self, processes: dict[int, dict[bytes, int]], room: int) -> int:
        """At most this much; where it is more than the room, mappings are read, those of the largest process first."""
        bounds = {pid: shareable_bytes(size) for pid, size in processes.items()}
        bound, unread = sum(bounds.values()), MAPS_BYTES
        objects: dict[tuple[bytes, bytes], int] = {}
        for pid in sorted(bounds, key=bounds.__getitem__, reverse=True):
            if bound + sum(objects.values()) <= room or unread <= 0:
                break
            maps = read(f"/proc/{pid}/maps", unread)
            unread -= len(maps)
            if maps and unread > 0:
                bound -= bounds[pid]
                self._note_objects(maps, objects)
            elif not maps:  # it hides, unless it has ended meanwhile
                bound -= bounds[pid] - shareable_bytes(status(pid))
        return bound + sum(objects.values())

    def _note_objects(self, maps: bytes, objects: dict[tuple[bytes, bytes], int]) -> None:
        """How far each shared mapping reaches into its object; files of a disk or of our own pools are none."""
        pools = {b"%02x:%02x" % (posix.major(device), posix.minor(device)) for device in self._pools}
        for line in maps.splitlines():
            if b"s " in line[:64]:
                span, permissions, offset, device, inode = line.split(None, 5)[:5]
                if permissions.endswith(b"s") and device.startswith(b"00:") and device not in pools:
                    first, _, last = span.partition(b"-")
                    end = int(offset, 16) + int(last, 16) - int(first, 16)
                    objects[device, inode] = max(objects.get((device, inode), 0), end)


class Growth:
    """Of something the whole machine holds, over the least it was: what others give back is no allowance."""

    def __init__(self, now: int) -> None:
        self._least = now

    def to(self, now: int) -> int:
        self._least = min(self._least, now)
        return now - self._least


def status(pid: int) -> dict[bytes, int]:
    return sizes(f"/proc/{pid}/status", (b"VmSize", *PRIVATE, *NOT_SHARED))


def shareable_bytes(sizes: dict[bytes, int]) -> int:
    """What a process maps that is neither its data nor its stack: shared, or read from files."""
    return max(0, sizes.get(b"VmSize", 0) - sum(sizes.get(name, 0) for name in NOT_SHARED))


def descriptors(pids: list[int]) -> int:
    """How many are open; a process that hides them has many."""
    count = 0
    for pid in pids:
        try:
            count += len(posix.listdir(f"/proc/{pid}/fd"))
        except OSError:
            count += MANY_DESCRIPTORS
    return count


def kernel_bytes() -> int:
    """What is neither free, nor user memory, nor a cache that shrinks on demand; of the whole machine."""
    users = sizes("/proc/meminfo", (b"MemTotal", *USERS))
    return users.pop(b"MemTotal", 0) - sum(users.values()) - _bytes_at_hand()


def shared_bytes() -> int:
    """In-memory file systems and shared memory of the whole machine."""
    return sizes("/proc/meminfo", (b"Shmem",)).get(b"Shmem", 0)


def _bytes_at_hand() -> int:
    """Free pages in the lists of single processors, which the kernel does not count as free."""
    lines = (line.partition(b":") for line in read("/proc/zoneinfo").splitlines())
    return PAGE * sum(int(text) for name, _, text in lines if name.strip() == b"count")


def sizes(path: str, names: tuple[bytes, ...]) -> dict[bytes, int]:
    """Of the lines `name: number kB`, those asked for, in bytes."""
    lines = (line.partition(b":") for line in read(path).splitlines())
    return {name: int(text.split()[0]) << 10 for name, _, text in lines if name in names}
