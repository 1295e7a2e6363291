"""Whatever ends, and however: nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from tests.conftest import open_descriptors
from v32.sandboxes import UnisolatedSandbox, open_sandbox
from v32.sandboxes.bubblewrap import open_bubblewrap
from v32.sandboxes.sandbox import CellResult, OutputChunk, SandboxPolicy
from v32.sandboxes.supervised import SupervisedSandbox

HOST = """
import anyio, os, sys
from v32.sandboxes import open_sandbox
async def main():
    async with open_sandbox() as sandbox:
        await sandbox.run_python("x = 1")
        await sandbox.checkpoint()
        print("open", flush=True)
        await sandbox.run_python(
            "import signal\\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\\nwhile True: pass", timeout=60)
anyio.run(main)
"""


def groups(of: int) -> set[str]:
    """The control groups that a host process has made."""
    return {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/v32-{of}-*")}


def supervisors(of: int | None = None) -> set[int]:
    """Processes of sandboxes, ours or those of another host process, by what their launcher was told."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if b"/run/v32/boot.py" in command and (of is None or _has_ancestor(int(name), of)):
                found.add(int(name))
    return found


def _has_ancestor(pid: int, ancestor: int) -> bool:
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        except OSError:
            return False
        if pid == ancestor:
            return True
    return False


def wait_until(holds: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def test_a_killed_host_leaves_no_process_and_no_group() -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"open\n"
    time.sleep(0.3)
    inside = supervisors(of=host.pid)
    assert len(inside) >= 3  # launcher or bwrap, PID 1, the interpreter and its checkpoint
    host.send_signal(signal.SIGKILL)
    host.wait()
    assert wait_until(lambda: not alive(inside)), alive(inside)
    assert wait_until(lambda: not groups(host.pid)), groups(host.pid)


@pytest.mark.slow
def test_opening_and_closing_leaks_nothing() -> None:
    _cycles(8)


@pytest.mark.slow
def test_two_hundred_cycles_leak_nothing() -> None:
    _cycles(200)


def _cycles(count: int) -> None:
    def state() -> tuple[set[str], int, int]:
        return groups(os.getpid()), len(open_descriptors()), len(supervisors(of=os.getpid()))

    async def cycle(number: int) -> None:
        async with open_sandbox() as sandbox:
            if number % 4 == 0:
                await sandbox.run_python("import subprocess; subprocess.Popen(['sleep', '100'])")
            if number % 4 == 1:
                await sandbox.write_file("a", b"x")

    async def run() -> None:
        for start in range(0, count, 4):
            async with anyio.create_task_group() as group:
                for number in range(start, start + 4):
                    group.start_soon(cycle, number)

    async def first() -> None:
        async with open_sandbox():
            pass

    anyio.run(first)
    before = state()
    mounts = Path("/proc/self/mounts").read_text()
    anyio.run(run)
    assert state() == before
    assert Path("/proc/self/mounts").read_text() == mounts


def test_a_sandbox_outlives_the_thread_that_opened_it() -> None:
    """`--die-with-parent` would bind it to that thread."""
    box: list[SupervisedSandbox] = []

    def opener() -> None:
        async def run() -> None:
            box.append(await open_bubblewrap(SandboxPolicy()))

        anyio.run(run)

    thread = threading.Thread(target=opener)
    thread.start()
    thread.join()

    async def use() -> None:
        async with box[0] as sandbox:
            await anyio.sleep(0.3)
            assert (await sandbox.run_python("6*7")).value == "42"

    anyio.run(use)


def test_a_dead_supervisor_ends_the_call_and_the_session_with_the_truth() -> None:
    async def run() -> None:
        code = "print('partial', flush=True)\nimport time; time.sleep(60)"
        async with open_sandbox() as sandbox:
            async for item in sandbox.stream("python", code):
                if isinstance(item, OutputChunk):
                    sandbox._jail.kill()
        assert isinstance(item, CellResult)
        assert (item.status, item.state, item.stdout) == ("session_dead", "lost", b"partial\n")

    anyio.run(run)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["timeout", "cancel", "cancel twice"])
def test_what_the_machine_is_late_is_not_taken_from_the_grace_of_the_code(how: str) -> None:
    """Nothing of the sandbox runs while it is stopped and then interrupted, as if others had all processors."""

    async def run() -> None:
        policy = SandboxPolicy(wall_seconds=0.3 if how == "timeout" else 60.0)
        results: list[CellResult] = []
        async with open_sandbox(policy) as sandbox, anyio.create_task_group() as group:

            async def call() -> None:
                results.append(await sandbox.run_python("import time; time.sleep(60)"))

            await sandbox.run_python("x = 1")
            stopped = supervisors(of=os.getpid())
            group.start_soon(call)
            await anyio.sleep(0.2)
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            for _ in range(("timeout", "cancel", "cancel twice").index(how)):
                group.start_soon(sandbox.cancel)
                await anyio.sleep(0.1)
            await anyio.sleep(1.5)
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            while not results:
                await anyio.sleep(0.01)
            assert (results[0].status, results[0].state) == ("timeout" if how == "timeout" else "cancelled", "kept")
            assert (await sandbox.run_python("x")).value == "1"

    anyio.run(run)


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.02, 0.05, 0.1])
def test_cancelling_while_it_opens_leaves_nothing(seconds: float) -> None:
    before = groups(os.getpid()), len(open_descriptors())

    async def run() -> None:
        with anyio.move_on_after(seconds):
            async with open_sandbox():
                pass

    anyio.run(run)
    assert wait_until(lambda: not supervisors(of=os.getpid()))
    assert wait_until(lambda: (groups(os.getpid()), len(open_descriptors())) == before)


@pytest.mark.slow
def test_without_descriptors_it_refuses_and_leaks_none() -> None:
    code = (
        "import anyio, os, resource\nfrom v32.sandboxes import open_sandbox, SandboxError\n"
        "async def main():\n"
        "    async with open_sandbox(): pass\n"
        "    fds = len(os.listdir('/proc/self/fd'))\n"
        "    for limit in range(fds + 2, fds + 60, 6):\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))\n"
        "        try:\n"
        "            async with open_sandbox(): print('opened'); break\n"
        "        except (SandboxError, OSError): pass\n"
        "        assert len(os.listdir('/proc/self/fd')) == fds, limit\n"
        "anyio.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "opened" in done.stdout


@pytest.mark.slow
def test_the_unisolated_one_ends_its_tree_and_its_folder_when_the_host_is_killed() -> None:
    code = (
        "import anyio, os\nfrom v32.sandboxes import UnisolatedSandbox\n"
        "async def main():\n"
        "    async with UnisolatedSandbox() as sandbox:\n"
        '        r = await sandbox.run_python(\'import subprocess; p = subprocess.Popen(["sleep", "100"]); p.pid\')\n'
        "        r = await sandbox.run_python('import os; os.getpid()')\n"
        "        print(r.value, sandbox._folder, flush=True)\n"
        "        await sandbox.bash('setsid sleep 100', timeout=60)\n"
        "anyio.run(main)"
    )
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert host.stdout is not None
    words = host.stdout.readline().decode().split()
    kernel, folder = int(words[0]), Path(words[1])
    assert folder.is_dir()
    time.sleep(0.3)
    host.send_signal(signal.SIGKILL)
    host.wait()
    assert wait_until(lambda: not alive({kernel}) and not folder.exists())


def test_where_no_namespace_can_be_made_nothing_runs() -> None:
    """User namespaces used up, as an ordinary user sees it on a locked-down machine."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a place without user namespaces")
    code = (
        "import ctypes, os, anyio\n"
        "assert ctypes.CDLL(None).unshare(0x10000000) == 0\n"
        "open('/proc/self/setgroups', 'w').write('deny')\n"
        "open('/proc/self/uid_map', 'w').write('0 0 1')\n"
        "open('/proc/self/gid_map', 'w').write('0 0 1')\n"
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "from v32.sandboxes import open_sandbox, SandboxUnavailable\n"
        "async def main():\n"
        "    try:\n"
        "        async with open_sandbox() as s: print('OPENED', await s.bash('id'))\n"
        "    except SandboxUnavailable as error: print(error)\n"
        "anyio.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "OPENED" not in done.stdout
    assert "nothing was run" in done.stdout


def test_the_unisolated_one_says_that_it_is() -> None:
    async def run() -> None:
        async with UnisolatedSandbox() as sandbox:
            enforced = (await sandbox.run_python("1")).enforced
            assert {getattr(enforced, name) for name in enforced.__slots__} == {"none"}

    anyio.run(run)
