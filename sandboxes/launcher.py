"""The program between the host and bwrap: joins the control group, drops to a private user, lays the ground.

Run as `python -I -S launcher.py name=value … -- bwrap-arguments`; never imported. Single-threaded, C modules only, ends
in exec. Names: uid, gid (a root caller only), cgroup (several), cpus, pool_bytes, pool_inodes, pool (a directory to
mount the workspace's file system on; empty to leave that to bwrap), bwrap (descriptor of the binary).

    always        give up a real-time schedule
    no cgroup     give up huge pages, which stay whole while one page of them is used
    with a cgroup fork: the parent stays outside, waits and removes the group, even if the host has been killed
    root only     join the cgroup, become a user that owns nothing else
    stage 0       own user and mount namespace: limits that only its owner may set, and a sized, inode-limited tmpfs
    exec bwrap    which builds the sandbox from there
"""

from __future__ import annotations

import _ctypes
import posix
import resource
import sys
import time

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 1 << 18
PR_SET_DUMPABLE, PR_SET_THP_DISABLE = 4, 41
REMOVE_SECONDS = 10.0
QUOTAS = {"max_inotify_instances": 32, "max_inotify_watches": 4096}  # else the whole user's, editors and all


class Int(_ctypes._SimpleCData):
    _type_ = "i"


class Call(_ctypes.CFuncPtr):
    """A function of libc by its name; `import ctypes` would be a part of the time a sandbox needs to open."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = Int


libc = {name: Call(_ctypes.dlsym(_ctypes.dlopen(None, 0), name)) for name in ("mount", "prctl", "unshare")}  # type: ignore[arg-type]


def main(arguments: list[str]) -> None:
    cut = arguments.index("--")
    settings = [argument.split("=", 1) for argument in arguments[:cut]]
    values = dict(settings)
    groups = [value for name, value in settings if name == "cgroup"]
    leave_real_time()
    if groups:
        child = posix.fork()
        if child:
            attend(child, groups)
        for group in groups:
            write(group + "/cgroup.procs", str(posix.getpid()))
    else:
        check(libc["prctl"](PR_SET_THP_DISABLE, 1, 0, 0, 0), "no huge pages")  # see guest/watchdog.py
    forbid_core_dumps()
    if "cpus" in values:
        posix.sched_setaffinity(0, [int(number) for number in values["cpus"].split(",")])
    if "uid" in values:
        drop(int(values["uid"]))
    if values["pool"]:
        enter_own_namespace()
        mount_pool(values["pool"], values["pool_bytes"], values["pool_inodes"])
    environment: dict[str, str] = dict(posix.environ)  # type: ignore[arg-type]
    if "libraries" in values:
        environment["LD_LIBRARY_PATH"] = values["libraries"]
    try:  # by descriptor: the private user need not reach its path
        posix.execve(int(values["bwrap"]), ["bwrap", *arguments[cut + 1 :]], environment)
    except OSError as error:
        raise SystemExit(f"launcher: cannot run bwrap: {error.strerror}") from None


def attend(child: int, groups: list[str]) -> None:
    """Outlive the sandbox, remove its control groups, end as it ended. A throttled group takes its time to die."""
    posix.closerange(0, 1 << 16)
    status = posix.waitpid(child, 0)[1]
    deadline = time.monotonic() + REMOVE_SECONDS
    for group in groups:
        while time.monotonic() < deadline:
            try:
                posix.rmdir(group)
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.002)
    posix._exit(posix.WEXITSTATUS(status) if posix.WIFEXITED(status) else 128 + posix.WTERMSIG(status))


def leave_real_time() -> None:
    """A host that runs before all others must not hand that on; nor could it join a group without real-time share."""
    if posix.sched_getscheduler(0) != posix.SCHED_OTHER:
        posix.sched_setscheduler(0, posix.SCHED_OTHER, posix.sched_param(0))


def forbid_core_dumps() -> None:
    """A limit of 1, not 0: a core pattern with a pipe ignores 0 and starts its program as root. See seccomp.py."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard != 0:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def drop(uid: int) -> None:
    """Become a user that owns nothing: as root even a user namespace leaves /proc/sys writable."""
    posix.setgroups([])
    posix.setresgid(uid, uid, uid)
    posix.setresuid(uid, uid, uid)
    check(libc["prctl"](PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")  # else /proc/self/uid_map belongs to root


def enter_own_namespace() -> None:
    """A user namespace of our own around bwrap's."""
    uid, gid = posix.geteuid(), posix.getegid()
    check(libc["unshare"](NEW_USER | NEW_MOUNTS), "unshare(CLONE_NEWUSER|CLONE_NEWNS)")
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{uid} {uid} 1")
    write("/proc/self/gid_map", f"{gid} {gid} 1")
    for name, value in QUOTAS.items():
        write("/proc/sys/user/" + name, str(value))


def mount_pool(target: str, size: str, inodes: str) -> None:
    """The only writable storage of the sandbox, limited in bytes and in files."""
    check(libc["mount"](b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount --make-rprivate /")
    options = f"size={size},nr_inodes={inodes},mode=755"
    check(libc["mount"](b"tmpfs", target.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode()), "mount tmpfs")
    for name in ("workspace", "tmp", "shm"):
        posix.mkdir(target + "/" + name, 0o700)


def write(path: str, text: str) -> None:
    try:
        fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(fd, text.encode())
        finally:
            posix.close(fd)
    except OSError as error:
        raise SystemExit(f"launcher: cannot write {text!r} to {path}: {error.strerror}") from None


def check(result: int, what: str) -> None:
    if result < 0:
        raise SystemExit(f"launcher: {what}: {posix.strerror(_ctypes.get_errno())}")


main(sys.argv[1:])
