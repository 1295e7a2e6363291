"""Memory, process and CPU limits by control groups, version 2 where delegated, version 1 for root.

Enters: a policy. Leaves: a `Cgroup` of this sandbox alone, or None where this user may not make one. The launcher
puts itself into it before it becomes anything else; the host reads its counters and removes it.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from v32.sandboxes.sandbox import SandboxPolicy

CPU_PERIOD = 100_000
SUPERVISORS = 4
"""Processes of our own that the pids limit counts too: the launcher, bwrap twice, the supervisor."""
REMOVE_SECONDS = 5.0
STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Cgroup:
    """Directories to join: one in version 2, one for each controller in version 1."""

    version: int
    memory: Path
    pids: Path
    cpu: Path | None

    @property
    def directories(self) -> list[Path]:
        return list(dict.fromkeys(path for path in (self.memory, self.pids, self.cpu) if path))

    def memory_kills(self) -> int:
        """How often the kernel has killed in here for memory."""
        return _counter(self.memory / ("memory.events" if self.version == 2 else "memory.oom_control"), "oom_kill")

    def refused_forks(self) -> int:
        """How often the kernel has refused a process in here."""
        return _counter(self.pids / "pids.events", "max")

    def kill(self) -> None:
        """Kill every process in it."""
        for path in self.directories:
            with contextlib.suppress(OSError):
                for pid in (path / "cgroup.procs").read_text().split():
                    os.kill(int(pid), 9)

    def try_remove(self) -> bool:
        """Remove the directories; false while a process is still in there."""
        for path in self.directories:
            try:
                path.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True

    def remove(self) -> bool:
        """Remove, waiting for what dies slowly (a throttled group takes its time)."""
        deadline = time.monotonic() + REMOVE_SECONDS
        while not self.try_remove():
            if time.monotonic() > deadline:
                return False
            self.kill()
            time.sleep(0.01)
        return True


def open_cgroup(
    policy: SandboxPolicy, root: Path = Path("/sys/fs/cgroup"), membership: str | None = None
) -> Cgroup | None:
    """A new group with the policy's limits, or None if none can be made here."""
    own = _memberships(Path("/proc/self/cgroup").read_text() if membership is None else membership)
    name = f"v32-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    for open_version in (_open_v2, _open_v1):
        cgroup = open_version(policy, root, own, name)
        if cgroup is not None:
            return cgroup
    return None


def _open_v2(policy: SandboxPolicy, root: Path, own: dict[str, str], name: str) -> Cgroup | None:
    """Beside or above our own group: the nearest ancestor that we may write and that hands down the controllers."""
    if "" not in own or not (root / "cgroup.controllers").exists():
        return None
    group = root / own[""].lstrip("/")
    for parent in (group, *group.parents):
        handed_down = _words(parent / "cgroup.subtree_control")
        if (
            {"memory", "pids"} <= handed_down
            and os.access(parent / "cgroup.procs", os.W_OK)
            and os.access(parent, os.W_OK)
        ):
            has_cpu = "cpu" in handed_down
            path = parent / name
            values = {
                "memory.max": str(policy.memory_bytes),
                "memory.swap.max": "0",
                "pids.max": str(policy.max_processes + SUPERVISORS),
            }
            if has_cpu:
                values["cpu.max"] = f"{int(policy.cpus * CPU_PERIOD)} {CPU_PERIOD}"
            cgroup = Cgroup(2, path, path, path if has_cpu else None)
            return cgroup if _make(cgroup, [(path, values)]) else None
        if parent == root:
            break
    return None


def _open_v1(policy: SandboxPolicy, root: Path, own: dict[str, str], name: str) -> Cgroup | None:
    groups = {}
    for controller in ("memory", "pids", "cpu"):
        parent = root / controller / own.get(controller, "/").lstrip("/")
        if controller in own and os.access(parent, os.W_OK):
            groups[controller] = parent / name
    if "memory" not in groups or "pids" not in groups:
        return None
    cgroup = Cgroup(1, groups["memory"], groups["pids"], groups.get("cpu"))
    limits = [
        (groups["memory"], {"memory.limit_in_bytes": str(policy.memory_bytes)}),
        (groups["pids"], {"pids.max": str(policy.max_processes + SUPERVISORS)}),
    ]
    if "cpu" in groups:
        quota = str(int(policy.cpus * CPU_PERIOD))
        limits.append((groups["cpu"], {"cpu.cfs_period_us": str(CPU_PERIOD), "cpu.cfs_quota_us": quota}))
    return cgroup if _make(cgroup, limits) else None


def _make(cgroup: Cgroup, limits: list[tuple[Path, dict[str, str]]]) -> bool:
    """All of it or nothing."""
    try:
        for path in cgroup.directories:
            _remove_stale(path.parent)
            path.mkdir()
        for path, values in limits:
            for name, value in values.items():
                if name != "memory.swap.max" or (path / name).exists():
                    (path / name).write_text(value)
    except OSError:
        cgroup.try_remove()
        return False
    return True


def _remove_stale(parent: Path) -> None:
    """Empty groups of processes that are gone: left behind only if the launcher was killed too."""
    for path in parent.glob("v32-*-*"):
        with contextlib.suppress(OSError, ValueError):
            owner = int(path.name.split("-")[1])
            if time.time() - path.stat().st_mtime > STALE_SECONDS and not Path(f"/proc/{owner}").exists():
                path.rmdir()


def _memberships(text: str) -> dict[str, str]:
    """Controller -> our group; the empty name is version 2."""
    own = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    return own


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _counter(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except OSError:
        pass
    return 0
