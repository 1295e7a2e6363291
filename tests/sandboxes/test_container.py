"""The container backend: its command line, its transport through a stand-in engine, and real engines where they are."""

from __future__ import annotations

import shlex
import stat
import sys
from pathlib import Path

import anyio
import pytest

from v32.sandboxes import SandboxPolicy, SandboxUnavailable
from v32.sandboxes import container as backend
from v32.sandboxes.bubblewrap import find_binaries
from v32.sandboxes.container import Engine, find_engine, open_container, program_inside, run_command
from v32.sandboxes.supervised import SupervisedSandbox

POLICY = SandboxPolicy(memory_bytes=1 << 28, max_processes=40, cpus=2)

STAND_IN = """#!{python}
# Understands `run … IMAGE args`, `exec … NAME args` and `kill NAME` as an engine would, with namespaces alone.
import json, os, signal, sys
folder, bwrap, libraries = {folder!r}, {bwrap!r}, {libraries!r}
if libraries: os.environ["LD_LIBRARY_PATH"] = libraries
words = sys.argv[1:]
if words[0] == "run":
    name, inside = words[words.index("--name") + 1], words[words.index("stand-in") + 1 :]
    info = os.open(f"{{folder}}/{{name}}", os.O_CREAT | os.O_WRONLY)
    os.set_inheritable(info, True)
    os.execv(bwrap, ["bwrap", "--unshare-user", "--unshare-pid", "--as-pid-1", "--ro-bind", "/usr", "/usr",
        "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
        "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/workspace", "--tmpfs", "/tmp", "--tmpfs", "/run",
        "--info-fd", str(info), "/usr/bin/python3", *inside])
name = words[-1] if words[0] == "kill" else next(word for word in words if word.startswith("v32-"))
pid = json.load(open(f"{{folder}}/{{name}}"))["child-pid"]
if words[0] == "kill":
    os.kill(pid, signal.SIGKILL)
else:
    program = words[words.index(name) + 1 :]
    os.execvp("nsenter", ["nsenter", "-t", str(pid), "-U", "-m", "-p", "--preserve-credentials", *program])
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Engine:
    binaries = find_binaries()
    if not binaries:
        pytest.skip("the stand-in needs bwrap")
    program = tmp_path / "engine"
    text = STAND_IN.format(
        python=sys.executable, folder=str(tmp_path), bwrap=binaries[0].path, libraries=binaries[0].libraries
    )
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return Engine(str(program), "stand-in")


def test_the_container_has_no_network_no_capability_and_nothing_of_the_host() -> None:
    command = run_command(Engine("podman", "image", "runsc"), POLICY, "v32-name")
    line = shlex.join(command)
    for words in (
        "--network none", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", "--user 65534:65534",
        "--memory 268435456 --memory-swap 268435456", "--pids-limit 41", "--cpus 2", "--pull never", "--runtime runsc",
    ):  # fmt: skip
        assert words in line
    for words in ("--volume", "-v ", "--mount", "--privileged", "--env", "--publish", "--pid ", "--ipc "):
        assert words not in line
    assert sum(map(len, program_inside())) < 120_000  # one argument may have 128 KiB


def test_without_an_engine_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ENGINES", ("no-such-engine",))
    with pytest.raises(SandboxUnavailable, match=r"no-such-engine is not installed.*podman pull"):
        find_engine()


def test_an_engine_that_gives_up_is_heard(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text("#!/bin/sh\necho 'no space left on device' >&2\nexit 125\n")
    program.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match="no space left on device"):
        anyio.run(open_container, POLICY, Engine(str(program)))


def test_cells_commands_and_timeouts_work_over_the_stdio_of_an_engine(stand_in: Engine) -> None:
    async def run() -> None:
        async with await open_container(SandboxPolicy(), stand_in) as sandbox:
            await _use(sandbox)

    anyio.run(run)


@pytest.mark.slow
def test_files_go_through_a_program_inside(stand_in: Engine) -> None:
    async def run() -> None:
        async with await open_container(SandboxPolicy(), stand_in) as sandbox:
            await sandbox.write_file("a/b", b"data")
            assert await sandbox.read_file("a/b") == b"data"
            assert [entry.path for entry in await sandbox.list_files()] == ["a", "a/b"]

    anyio.run(run)


@pytest.mark.slow
def test_a_real_engine() -> None:
    try:
        engine = find_engine()
    except SandboxUnavailable as error:
        pytest.skip(str(error))

    async def run() -> None:
        async with await open_container(SandboxPolicy(), engine) as sandbox:
            await _use(sandbox)
            await sandbox.write_file("a/b", b"data")
            assert await sandbox.read_file("a/b") == b"data"

    anyio.run(run)


async def _use(sandbox: SupervisedSandbox) -> None:
    await sandbox.run_python("x = 20")
    assert (await sandbox.run_python("x * 2")).value == "40"
    big = await sandbox.exec(["wc", "-c"], stdin=b"x" * 3_000_000)
    assert big.stdout == b"3000000\n"
    long = await sandbox.bash("seq 100000")
    assert long.stdout.endswith(b"\n100000\n")
    stopped = await sandbox.run_python("import time; time.sleep(60)", timeout=0.5)
    assert (stopped.status, stopped.state) == ("timeout", "kept")
    checkpoint = await sandbox.checkpoint()
    await sandbox.run_python("x = 0")
    await sandbox.rollback(checkpoint)
    assert (await sandbox.run_python("x")).value == "20"
    assert "container" in sandbox.enforced.network
