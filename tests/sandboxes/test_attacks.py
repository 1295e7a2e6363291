"""The corpus is contained; without a sandbox it succeeds; without one defence, what that defence stops succeeds."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from v32.sandboxes import artefacts, attacks
from v32.sandboxes.attacks import BY_DESIGN, load_attacks, run_attacks
from v32.sandboxes.bubblewrap import NAMESPACES, Recipe, open_bubblewrap
from v32.sandboxes.sandbox import SandboxPolicy
from v32.sandboxes.startup import GUEST
from v32.sandboxes.supervised import SupervisedSandbox

from .as_user import UID, run_as_user  # noqa: TID251 (the folder of the tests, not ours)

ATTACKS = {attack.id: attack for attack in load_attacks()}
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="shows what a root caller would lose")

RUN = r"""
import anyio, json, re, sys
from functools import partial
from v32.sandboxes.attacks import run_attacks
if sys.argv[2]: open(sys.argv[2] + "/cgroup.procs", "w").write("0")
controls, fillers = r"\x00-\x08\x0b-\x1f\x7f-\x9f", r"\u034f\u115f\u200c-\u200f\u202a-\u206f\u3164\ufe00-\ufe0f"
clean = partial(re.sub, f"[{controls}{fillers}\U000e0000-\U000e0fff]", "")
for r in anyio.run(partial(run_attacks, only=sys.argv[1].split(","), render=clean)):
    print(json.dumps([r.id, r.outcome, r.evidence]))
"""

CONTROL = """
import anyio, json, sys
from functools import partial
from v32.sandboxes.attacks import run_attacks
from v32.sandboxes.unisolated import UnisolatedSandbox
async def opener(policy):
    sandbox = UnisolatedSandbox(policy)
    return await sandbox.__aenter__()
for r in anyio.run(partial(run_attacks, only=sys.argv[1].split(","), open_session=opener)):
    print(json.dumps([r.id, r.outcome, r.evidence]))
"""

# Harmless without a sandbox, run by a user who owns nothing. Not walk-for-keys: it gives up after four seconds, which
# are not enough on a busy machine with much in /tmp.
SAFE = (
    "read-host-file", "read-all-environ", "tcp-loopback", "path-unix", "abstract-unix",
    "scm-rights-smuggle", "sysfs-visible", "vsock", "keyctl-session",
)  # fmt: skip


def run_as_we_are(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@contextlib.contextmanager
def own_group() -> Iterator[str]:
    """A control group in which the judge counts nobody else's memory; an empty name where none can be made."""
    group = Path("/sys/fs/cgroup/memory", f"judge-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        yield ""
        return
    os.chown(group / "cgroup.procs", UID, -1)
    try:
        yield str(group)
    finally:
        while any(path.is_dir() for path in group.iterdir()):  # of the last sandbox; its launcher removes it
            time.sleep(0.05)
        group.rmdir()


def outcomes(run: Callable[..., str]) -> dict[str, tuple[str, str]]:
    """Outcome and evidence of every attack; those that are measured go one after another, the others beside them."""
    measured = [attack.id for attack in ATTACKS.values() if attack.category == "resource"]
    others = [name for name in ATTACKS if name not in measured]
    with own_group() as group, ThreadPoolExecutor() as pool:
        printed = list(pool.map(lambda names, group: run(RUN, ",".join(names), group), (measured, others), (group, "")))
    rows = [json.loads(line) for text in printed for line in text.splitlines()]
    return {name: (outcome, evidence) for name, outcome, evidence in rows}


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_as_we_are, run_as_user])
def test_every_attack_is_contained_but_those_that_succeed_by_design(run: Callable[..., str]) -> None:
    """Once more as an ordinary user without any control group, where this is root."""
    seen = outcomes(run)
    assert seen.keys() == ATTACKS.keys()
    assert {name: evidence for name, (outcome, evidence) in seen.items() if outcome == "succeeded"} == {}
    assert {name for name, (outcome, _) in seen.items() if outcome == "by design"} <= set(BY_DESIGN)
    unjudged = {name for name, (outcome, _) in seen.items() if outcome == "not judged"}
    assert unjudged == {name for name in ATTACKS if name.startswith("tok-")}


@pytest.mark.slow
def test_without_a_sandbox_the_snippets_do_what_they_are_for() -> None:
    output = run_as_user(CONTROL, ",".join(SAFE))
    seen = {name: outcome for name, outcome, _ in map(json.loads, output.splitlines())}
    assert seen == dict.fromkeys(SAFE, "succeeded")


WIDE = Recipe(minimal_root=False)
CASES = {
    "minimal root": (WIDE, ("read-host-file", "walk-for-keys", "path-unix", "scm-rights-smuggle", "sysfs-visible")),
    "cleared environment": (Recipe(clear_environment=False), ("read-all-environ",)),
    "network namespace": (
        Recipe(namespaces=tuple(name for name in NAMESPACES if name != "net"), landlock=False),
        ("tcp-loopback", "abstract-unix"),
    ),
    "ipc namespace": (
        Recipe(namespaces=tuple(name for name in NAMESPACES if name != "ipc")),
        ("persist-shm-sysv",),
    ),
    "pid namespace": (Recipe(namespaces=tuple(name for name in NAMESPACES if name != "pid")), ("host-processes",)),
    "uts namespace": (Recipe(namespaces=tuple(name for name in NAMESPACES if name != "uts")), ("host-name",)),
    "cgroup namespace": (Recipe(namespaces=tuple(name for name in NAMESPACES if name != "cgroup")), ("host-groups",)),
    "quotas of a user namespace of its own": (
        Recipe(own_pool=False, private_uid=False),
        ("inotify-exhaust", "inotify-watches"),
    ),
    "seccomp": (Recipe(seccomp=False), ("vsock", "keyctl-session", "modify-ldt")),
    "socket families": (Recipe(seccomp_without=frozenset({"socket"})), ("vsock",)),
    "keyring calls": (Recipe(seccomp_without=frozenset({"keyctl", "add_key", "request_key"})), ("keyctl-session",)),
    "nested user namespaces": (
        Recipe(disable_userns=False, seccomp_without=frozenset({"clone", "clone3", "unshare"})),
        ("clone-userns", "clone3-userns"),
    ),
    "clone rules are the second wall": (Recipe(disable_userns=False), ()),
    "sweep": (Recipe(sweep=False), ("nohup-disown", "orphan-daemon")),
    "the supervisor's limits": (Recipe(seccomp_without=frozenset({"prlimit64"})), ("prlimit-pid1",)),
    "the supervisor's priority": (
        Recipe(seccomp_without=frozenset({"sched_setscheduler", "setpriority"})),
        ("starve-pid1",),
    ),
    "no core limit of 0": (Recipe(seccomp_without=frozenset({"prlimit64", "setrlimit"})), ("core-pattern-pipe",)),
    "/proc without keys": (Recipe(hidden_in_proc=False, private_uid=False), ("proc-keys",)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("defence", CASES)
def test_without_a_defence_its_attacks_succeed(defence: str) -> None:
    recipe, names = CASES[defence]
    for name in names or ("clone-userns", "clone3-userns"):
        (result,) = anyio.run(partial(run_attacks, only=[name], open_session=partial(_open, recipe)))
        expected = "succeeded" if names else "contained"
        assert (name, result.outcome) == (name, expected), result.evidence


LINES = {
    "a nonce for each request": (Recipe(), "supervisor.py", "reply[:NONCE] == call.nonce and ", "forge-answer"),
    "a supervisor nobody looks into": (
        Recipe(landlock=False, seccomp=False),
        "supervisor.py",
        "confine.set_dumpable(False)",
        "proc-pid1-mem",
    ),
    "stopped checkpoints": (Recipe(), "interpreters.py", "kill(copy.pid, _signal.SIGSTOP)", "checkpoint-planted"),
    "blocking output": (Recipe(), "kernel.py", "_make_blocking(1, 2)", "pipe-flags-persist"),
    "a workspace opened before it is emptied": (Recipe(), "storage.py", "posix.chmod(directory, 0o700)", "wipe-odd"),
}


@pytest.mark.slow
@pytest.mark.parametrize("defence", LINES)
def test_without_a_line_of_the_supervisor_its_attack_succeeds(defence: str, tmp_path: Path) -> None:
    recipe, name, line, attack = LINES[defence]
    thinned = replace(recipe, guest=_without(line, name, tmp_path))
    (result,) = anyio.run(partial(run_attacks, only=[attack], open_session=partial(_open, thinned)))
    assert result.outcome == "succeeded", result.evidence


@pytest.mark.slow
def test_files_read_with_links_followed_would_be_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "RESOLVE", 0)
    (result,) = anyio.run(partial(run_attacks, only=["artefact-dir-race"]))
    assert result.outcome == "succeeded"


def test_without_bounds_a_flood_of_output_fills_the_host() -> None:
    async def kept(policy: SandboxPolicy) -> int:
        async with await open_bubblewrap(policy) as sandbox:
            return len((await sandbox.bash("head -c 20M /dev/zero")).stdout)

    unbounded = replace(attacks.POLICY, output_kill_bytes=1 << 40, output_tail_bytes=1 << 30)
    assert anyio.run(kept, unbounded) == 20 << 20
    assert anyio.run(kept, attacks.POLICY) < 100_000


@NEEDS_ROOT
@pytest.mark.slow
def test_without_a_private_user_root_reads_what_only_root_may_read() -> None:
    recipe = Recipe(minimal_root=False, private_uid=False)
    (result,) = anyio.run(partial(run_attacks, only=["read-root-file"], open_session=partial(_open, recipe)))
    assert result.outcome == "succeeded"
    (result,) = anyio.run(partial(run_attacks, only=["read-root-file"], open_session=partial(_open, WIDE)))
    assert result.outcome == "contained"


def opened(path: str) -> str:
    """Code that prints whether a file opens for writing; nothing is written."""
    return f"import os\ntry: os.close(os.open({path!r}, os.O_WRONLY)); print('open')\nexcept OSError as e: print(e)"


SYSCTL, OWN_MEMORY = opened("/proc/sys/kernel/core_pattern"), opened("/proc/self/mem")
KILL_ALL = "kill -9 -1"
AFFINITY = "import os\ntry: os.sched_setaffinity(0, range(2)); print('open')\nexcept OSError as e: print(e)"
MEMFD = "import os\ntry: os.memfd_create('x'); print('open')\nexcept OSError as e: print(e)"
ROOT_FILE = "try: open('/run/fill', 'w').write('x'); print('open')\nexcept OSError as e: print(e)"
INODES = (
    "try:\n    for i in range(30_000): open(f'/tmp/{i}', 'w').close()\n    print('open')\nexcept OSError as e: print(e)"
)
MANY = """
import os, time
read, write = os.pipe()
for i in range(6):
    if os.fork() == 0:
        x = bytearray(60 << 20); x[::4096] = bytes(15 << 10); os.write(write, b"."); time.sleep(20); os._exit(0)
while i >= 0: i -= len(os.read(read, 8))
time.sleep(1); print('open')
"""


@NEEDS_ROOT
@pytest.mark.slow
@pytest.mark.parametrize("kept", ["private_uid", "read_only_sysctl", "landlock"])
def test_each_of_three_walls_keeps_the_core_pattern_from_root(kept: str) -> None:
    """Opened for writing, never written: a piped pattern would be a command that the host's kernel runs as root."""
    walls = {name: name == kept for name in ("private_uid", "read_only_sysctl", "landlock")}
    assert _output(Recipe(**walls), SYSCTL) != b"open\n"  # type: ignore[arg-type]


@NEEDS_ROOT
def test_without_the_three_walls_root_opens_the_core_pattern() -> None:
    assert _output(Recipe(private_uid=False, read_only_sysctl=False, landlock=False), SYSCTL) == b"open\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("without", "with_", "code"),
    [
        (Recipe(landlock=False), Recipe(), OWN_MEMORY),
        (Recipe(seccomp=False, cgroup=False), Recipe(cgroup=False), AFFINITY),
        (Recipe(seccomp=False, cgroup=False), Recipe(cgroup=False), MEMFD),
        (Recipe(read_only_root=False, landlock=False), Recipe(landlock=False), ROOT_FILE),
        (Recipe(read_only_root=False, landlock=False), Recipe(read_only_root=False), ROOT_FILE),
        (Recipe(own_pool=False), Recipe(), INODES),
        (Recipe(cgroup=False, watchdog=False), Recipe(cgroup=False), MANY),
    ],
)
def test_what_one_defence_alone_stops(without: Recipe, with_: Recipe, code: str) -> None:
    policy = replace(attacks.POLICY, memory_bytes=200 << 20)
    assert _output(without, code, policy) == b"open\n"
    assert _output(with_, code, policy) != b"open\n"


SHARED = "import mmap, time\nm = mmap.mmap(-1, 300 << 20)\nfor at in range(0, len(m), 4096): m[at] = 1\n"
TRIMMED = """
import ctypes, mmap, time
kept = []
for _ in range(20):
    m = mmap.mmap(-1, 20 << 20); kept.append(m)
    m.write(b"x" * len(m))
    at = ctypes.addressof(ctypes.c_char.from_buffer(m))
    ctypes.CDLL(None).munmap(ctypes.c_void_p(at + 4096), ctypes.c_size_t(len(m) - 4096))
"""
TABLES = (
    "import mmap, time\nm = mmap.mmap(-1, 1 << 37, flags=0x4022, prot=1)\nfor at in range(0, 1 << 37, 2 << 20): m[at]\n"
)
SOCKETS = """
import os, socket, time
read, write = os.pipe()
for _ in range(24):
    if os.fork() == 0:
        kept = []
        try:
            while True:
                kept += socket.socketpair()
                kept[-1].setblocking(False)
                try:
                    while True: kept[-1].send(bytes(4096))
                except BlockingIOError: pass
        except OSError: pass
        os.write(write, b"."); time.sleep(20); os._exit(0)
filled = 0
while filled < 24: filled += len(os.read(read, 24))
"""
COUNTED = {
    "what is shared, whole": ("objects[device, inode] = max(objects.get((device, inode), 0), end)", SHARED),
    "what a process hides": (" maps and", "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n" + SHARED),
    "what no process maps any more": (" or (has_shared_grown and shared > 0)", TRIMMED),
    "page tables": (' b"VmPTE",', TABLES),
    "the kernel's own": ("is_over |= has_kernel_grown and descriptors(list(processes)) >= MANY_DESCRIPTORS", SOCKETS),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", COUNTED)
def test_memory_that_only_one_line_of_the_watchdog_counts(what: str, tmp_path: Path) -> None:
    line, code = COUNTED[what]
    policy = replace(attacks.POLICY, memory_bytes=200 << 20)
    code += "time.sleep(2); print('open')"
    assert _output(Recipe(cgroup=False, guest=_without(line, "watchdog.py", tmp_path)), code, policy) == b"open\n"
    assert _output(Recipe(cgroup=False), code, policy) == b""


@pytest.mark.slow
def test_kernel_memory_that_others_free_meanwhile_is_no_allowance() -> None:
    policy = replace(attacks.POLICY, memory_bytes=200 << 20)
    full, hold = anyio.Event(), SOCKETS + "print('full', flush=True); time.sleep(20)"
    wait = "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.1)\n"

    async def fill(sandbox: SupervisedSandbox) -> None:
        async for _ in sandbox.stream("python", hold, timeout=100):
            full.set()

    async def run() -> str:
        other = await open_bubblewrap(policy, Recipe(cgroup=False, watchdog=False))
        async with await open_bubblewrap(policy, Recipe(cgroup=False)) as sandbox, anyio.create_task_group() as group:
            group.start_soon(fill, other)
            await full.wait()
            stream = sandbox.stream("python", wait + hold, timeout=100)
            await anext(stream)
            await other.close()
            await anyio.sleep(0.5)  # the watchdog looks
            await sandbox.write_file("go", b"")
            *_, result = [event async for event in stream]
        return result.status  # type: ignore[union-attr]

    assert anyio.run(run) == "memory_limit"


@NEEDS_ROOT
@pytest.mark.slow
@pytest.mark.parametrize("is_marked", [True, False])
def test_out_of_memory_the_kernel_takes_the_sandbox_and_not_its_larger_host(is_marked: bool, tmp_path: Path) -> None:
    """Both in one control group, which stands for a machine: unmarked, the host dies."""
    group = Path("/sys/fs/cgroup/memory", f"test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group of version 1 can be made here")
    guest = GUEST if is_marked else _without('_write("/proc/self/oom_score_adj", b"1000")', "confine.py", tmp_path)
    code = f"""
import anyio, pathlib
from v32.sandboxes.bubblewrap import Recipe, SandboxPolicy, open_bubblewrap
pathlib.Path({str(group / "cgroup.procs")!r}).write_text("0")
mine = bytes(range(256)) * (200 << 12)
async def main():
    recipe = Recipe(cgroup=False, watchdog=False, rlimits=False, guest=pathlib.Path({str(guest)!r}))
    async with await open_bubblewrap(SandboxPolicy(), recipe) as sandbox:
        print((await sandbox.run_python("b'x' * (180 << 20)")).status)
anyio.run(main)
"""
    try:
        (group / "memory.limit_in_bytes").write_text(str(320 << 20))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    finally:
        while any((group / "cgroup.procs").read_text()):
            time.sleep(0.05)
        group.rmdir()
    assert (done.returncode, done.stdout) == ((0, "died\n") if is_marked else (-9, "")), done.stderr


def test_landlock_keeps_a_command_from_killing_the_interpreter() -> None:
    async def run(recipe: Recipe) -> str:
        async with await open_bubblewrap(SandboxPolicy(), recipe) as sandbox:
            await sandbox.run_python("x = 1")
            return (await sandbox.bash(KILL_ALL)).state

    assert anyio.run(run, Recipe()) == "kept"
    assert anyio.run(run, Recipe(landlock=False)) == "lost"


@pytest.mark.slow
def test_the_process_limit_is_rlimit_and_cgroup_each() -> None:
    code = (
        "import os, time\nn = 0\ntry:\n    while n < 90:\n        if os.fork() == 0: time.sleep(3); os._exit(0)\n"
        "        n += 1\nexcept OSError: pass\nn"
    )

    async def run(recipe: Recipe) -> int:
        async with await open_bubblewrap(attacks.POLICY, recipe) as sandbox:
            return int((await sandbox.run_python(code)).value or -1)

    assert anyio.run(run, Recipe()) < 64
    assert anyio.run(run, Recipe(cgroup=False)) < 64
    assert anyio.run(run, Recipe(cgroup=False, rlimits=False)) == 90


@pytest.mark.slow
def test_a_terminal_is_out_of_reach_even_with_one() -> None:
    """The runner gets a controlling terminal; the sandbox must not be able to type into it."""
    code = (
        "import anyio, json\nfrom functools import partial\nfrom v32.sandboxes.attacks import run_attacks\n"
        "print([r.outcome for r in anyio.run(partial(run_attacks, only=['tiocsti-ctty']))])"
    )
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    said = b""
    with contextlib.suppress(OSError):  # the terminal's other side has gone
        while data := os.read(fd, 4096):
            said += data
    os.waitpid(pid, 0)
    os.close(fd)
    assert b"['contained']" in said


async def _open(recipe: Recipe, policy: SandboxPolicy) -> SupervisedSandbox:
    return await open_bubblewrap(policy, recipe)


def _output(recipe: Recipe, code: str, policy: SandboxPolicy = attacks.POLICY) -> bytes:
    async def run() -> bytes:
        async with await open_bubblewrap(policy, recipe) as sandbox:
            return (await sandbox.run_python(code, timeout=100)).stdout

    return anyio.run(run)


def _without(line: str, name: str, tmp_path: Path) -> Path:
    """What runs inside, less one line (or part of one, which then begins or ends with a space)."""
    guest = tmp_path / "guest"
    shutil.copytree(GUEST, guest)
    text = (guest / name).read_text()
    assert line in text
    (guest / name).write_text(text.replace(line, "" if line != line.strip() else "pass"))
    return guest
