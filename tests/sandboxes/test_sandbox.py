"""What every backend promises: state, values, partial output, the truth about what survived."""

from __future__ import annotations

import time

import anyio
import pytest

from v32.sandboxes import SandboxClosed, SandboxError, SandboxFileError, SandboxPolicy
from v32.sandboxes.sandbox import CellResult, ExecResult, OutputChunk
from v32.sandboxes.supervised import SupervisedSandbox

from .conftest import Session  # noqa: TID251 (the folder of the tests, not ours)

QUICK = SandboxPolicy(wall_seconds=20.0, grace_seconds=1.0)


def test_cells_share_variables_and_give_the_value_of_their_last_expression(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        first = await sandbox.run_python("import sys\nx = 20\nprint('out')\nprint('err', file=sys.stderr)")
        assert (first.stdout, first.stderr, first.value, first.status) == (b"out\n", b"err\n", None, "ok")
        second = await sandbox.run_python("x += 1\nx * 2")
        assert second.value == "42"
        assert (await sandbox.run_python("_ + 1")).value == "43"
        assert (await sandbox.run_python("None")).value is None
        assert (await sandbox.run_python("")).status == "ok"
        assert (await sandbox.run_python("import asyncio\nawait asyncio.sleep(0, 'awaited')")).value == "'awaited'"
        assert (await sandbox.run_python("x", fresh=True)).error.splitlines()[
            -1
        ] == "NameError: name 'x' is not defined"

    session(body)


def test_an_exception_is_a_traceback_with_the_lines_of_the_cell_and_keeps_the_state(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.run_python("def half(n):\n    return n / 0\ny = 1")
        failed = await sandbox.run_python("print('before')\nhalf(3)")
        assert (failed.status, failed.state, failed.stdout) == ("error", "kept", b"before\n")
        assert failed.error is not None
        assert "    return n / 0" in failed.error
        assert failed.error.endswith("ZeroDivisionError: division by zero")
        assert "kernel.py" not in failed.error
        broken = await sandbox.run_python("def (")
        assert broken.error is not None
        assert "SyntaxError" in broken.error
        left = await sandbox.run_python("raise SystemExit(0)")
        assert (left.status, left.error) == ("error", left.error)
        assert (await sandbox.run_python("y")).value == "1"

    session(body)


HOSTILE = [
    "class R:\n    def __repr__(self): raise SystemExit(0)\nR()",
    "class R:\n    def __repr__(self): return 1\nR()",
    "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
    "import sys; sys.stdout = None; sys.stderr = None",
    "import sys; sys.modules.clear()",
    "'\\ud800'",
    "print('\\ud800')",
    "raise ValueError('\\ud800')",
    "\ud800",
    "a\0b",
    "import builtins; del builtins.repr",
    "(" * 500 + ")" * 500,
]


def test_hostile_cells_get_an_answer_and_the_next_cell_works(bubblewrap: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        for code in HOSTILE:
            result = await sandbox.run_python(code)
            assert result.status in ("ok", "error", "died"), code
            assert result.status != "died" or result.state == "lost", code
            assert (await sandbox.run_python("6*7", fresh=True)).value == "42", code

    bubblewrap(body)


def test_a_program_gets_its_arguments_stdin_and_environment(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        big = b"0123456789abcdef" * 100_000
        echoed = await sandbox.exec(["md5sum"], stdin=big)
        assert echoed.exit_code == 0
        assert (await sandbox.exec(["printf", "%s|", "a b", "", "ü"])).stdout == "a b||ü|".encode()
        assert (await sandbox.exec(["cat"])).stdout == b""
        missing = await sandbox.exec(["no-such-program"])
        assert (missing.exit_code, missing.stderr) == (127, b"no-such-program: command not found\n")
        script = await sandbox.bash("echo $NAME; pwd; exit 3", cwd="sub", env={"NAME": "v=1"})
        assert script.exit_code == 126  # no such directory
        await sandbox.write_file("sub/x", b"")
        script = await sandbox.bash("echo $NAME; basename $PWD; exit 3", cwd="sub", env={"NAME": "v=1"})
        assert (script.exit_code, script.stdout, script.status) == (3, b"v=1\nsub\n", "error")
        assert (await sandbox.bash("kill -9 $$")).exit_code == -9

    session(body)


def test_requests_that_cannot_be_are_refused_by_name(bubblewrap: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        with pytest.raises(SandboxError, match="argv is empty"):
            await sandbox.exec([])
        with pytest.raises(SandboxError, match="NUL"):
            await sandbox.bash("echo a\0b")
        with pytest.raises(SandboxError, match="surrogate"):
            await sandbox.bash("echo \ud800")
        with pytest.raises(SandboxError, match="the limit is"):
            await sandbox.run_python("#" * (9 << 20))
        with pytest.raises(SandboxError, match="checkpoint has ended"):
            await sandbox.rollback("never-made")
        assert (await sandbox.run_python("1")).value == "1"

    bubblewrap(body)


def test_a_timeout_keeps_output_and_state_when_the_code_listens(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.run_python("z = 5")
        stopped = await sandbox.run_python("print('partial')\nimport time\ntime.sleep(60)", timeout=0.4)
        assert (stopped.status, stopped.state, stopped.timed_out) == ("timeout", "kept", True)
        assert stopped.stdout == b"partial\n"
        assert "Variables are kept" in stopped.notice
        assert (await sandbox.run_python("z")).value == "5"
        shell = await sandbox.bash("echo partial; sleep 60", timeout=0.4)
        assert (shell.status, shell.stdout, shell.timed_out) == ("timeout", b"partial\n", True)

    session(body, QUICK)


def test_code_that_does_not_listen_is_killed_and_the_loss_is_told(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.write_file("kept", b"file")
        start = time.monotonic()
        stopped = await sandbox.run_python(
            "import signal, time\nz = 1\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            "print('partial')\ntime.sleep(60)",
            timeout=1.0,
        )
        assert time.monotonic() - start < 10
        assert (stopped.status, stopped.state, stopped.stdout) == ("timeout", "lost", b"partial\n")
        assert "variables are lost" in stopped.notice
        again = await sandbox.run_python("'z' in globals()")
        assert (again.value, again.state) == ("False", "kept")
        assert await sandbox.read_file("kept") == b"file"

    session(body, QUICK)


def test_an_interpreter_that_ends_is_reported_with_its_reason(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        ended = await sandbox.run_python("print('last', flush=True)\nimport os\nos._exit(0)")
        assert (ended.status, ended.state, ended.stdout) == ("died", "lost", b"last\n")
        assert "exit 0" in ended.notice
        await sandbox.run_python("import threading, time, os\nthreading.Timer(0.2, os._exit, [7]).start()")
        await anyio.sleep(1.0)
        after = await sandbox.run_python("1")
        assert (after.value, after.state) == ("1", "lost")

    session(body)


def test_output_streams_as_it_comes_and_ends_with_one_result(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        chunks, results = [], []
        async for event in sandbox.stream(
            "python", "import time\nfor i in range(3):\n    print(i)\n    time.sleep(.05)\ni"
        ):
            (chunks if isinstance(event, OutputChunk) else results).append(event)
        assert b"".join(chunk.data for chunk in chunks) == b"0\n1\n2\n"
        assert len(chunks) > 1
        assert isinstance(results[0], CellResult)
        assert (len(results), results[0].value) == (1, "2")
        events = [event async for event in sandbox.stream("bash", "echo out; echo err >&2")]
        assert isinstance(events[-1], ExecResult)
        assert {event.stream for event in events[:-1] if isinstance(event, OutputChunk)} == {"stdout", "stderr"}

    session(body)


def test_leaving_a_stream_early_stops_the_call(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        stream = sandbox.stream("python", "import time\nwhile True:\n    print('x')\n    time.sleep(.01)")
        async for _ in stream:
            break
        await stream.aclose()
        assert (await sandbox.run_python("6*7")).value == "42"

    session(body, QUICK)


def test_cancelling_interrupts_then_kills_and_is_safe_at_any_time(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.cancel()
        results: list[CellResult] = []

        async def run(code: str) -> None:
            results.append(await sandbox.run_python(code))

        for code, state in (
            ("q = 1\nimport time\ntime.sleep(60)", "kept"),
            ("while True:\n    try:\n        time.sleep(60)\n    except BaseException: pass", "lost"),
        ):
            async with anyio.create_task_group() as group:
                group.start_soon(run, code)
                await anyio.sleep(0.4)
                await sandbox.cancel()
            assert (results[-1].status, results[-1].state) == ("cancelled", state)
        await sandbox.cancel()
        assert (await sandbox.run_python("6*7")).value == "42"

    session(body, QUICK)


@pytest.mark.parametrize("fresh", [False, True])
def test_an_interrupt_that_comes_before_the_code_has_begun_stops_it(session: Session, fresh: bool) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        results: list[CellResult] = []

        async def run() -> None:
            results.append(await sandbox.run_python("while True: pass", fresh=fresh))

        for delay in (0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016) * 2:
            await sandbox.run_python("k = 1")
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                await anyio.sleep(delay)
                await sandbox.cancel()
            assert (results[-1].status, results[-1].state) == ("cancelled", "kept"), delay
            assert (await sandbox.run_python("'k' in globals()")).value == str(not fresh)

    session(body)


def test_a_cancelled_task_leaves_a_sandbox_that_works(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.run_python("k = 1")
        for code in ("import time; time.sleep(60)", "'x' * 10"):
            with anyio.move_on_after(0.3):
                await sandbox.run_python(code)
        with anyio.move_on_after(0.3):
            await sandbox.bash("sleep 60")
        assert (await sandbox.run_python("k")).value == "1"

    session(body, QUICK)


def test_a_loss_that_nobody_saw_is_told_with_the_next_result(session: Session) -> None:
    deaf = "while True:\n    try:\n        while True: print('deaf', flush=True)\n    except BaseException: pass"

    async def body(sandbox: SupervisedSandbox) -> None:
        async def lose() -> None:
            stream = sandbox.stream("python", deaf)
            await anext(stream)
            await stream.aclose()

        await lose()
        told = await sandbox.run_python("6*7")
        assert (told.value, told.status, told.state) == ("42", "ok", "lost")
        assert told.notice.startswith("The variables of earlier calls were lost")
        assert (await sandbox.run_python("1")).state == "kept"
        await lose()
        assert (await sandbox.bash("true")).state == "lost"
        await lose()
        await sandbox.reset()
        assert (await sandbox.bash("true")).state == "kept"

    session(body, SandboxPolicy(grace_seconds=0.2))


def test_a_loss_between_the_calls_is_told_after_a_checkpoint_too(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.run_python("import threading, os\nthreading.Timer(0.1, os._exit, [7]).start()")
        await anyio.sleep(0.5)
        await sandbox.checkpoint()
        assert (await sandbox.run_python("1")).state == "lost"

    session(body)


def test_calls_take_turns(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.run_python("log = []")
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(sandbox.run_python, f"log.append('+{number}'); log.append('-{number}')")
        assert len(eval((await sandbox.run_python("log")).value or "")) == 8

    session(body)


def test_a_reset_forgets_variables_and_keeps_or_wipes_files(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.run_python("v = 1")
        await sandbox.bash("mkdir -p a/b/c && echo x > a/b/c/d && chmod 000 a/b && ln -s / root && mkfifo pipe")
        await sandbox.reset()
        gone = await sandbox.run_python("v")
        assert (gone.status, gone.state) == ("error", "kept")
        assert {entry.path for entry in await sandbox.list_files()} >= {"a"}
        await sandbox.reset(files="wipe")
        assert (await sandbox.bash("ls -A")).stdout == b""
        assert (await sandbox.bash("ls / | head -1")).stdout != b""

    session(body)


def test_a_checkpoint_brings_variables_back_as_often_as_wanted(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.run_python("n = [1]")
        first = await sandbox.checkpoint()
        await sandbox.run_python("n.append(2)")
        second = await sandbox.checkpoint()
        await sandbox.run_python("import os; os._exit(1)")
        for checkpoint, value in ((second, "[1, 2]"), (first, "[1]"), (first, "[1]"), (second, "[1, 2]")):
            await sandbox.rollback(checkpoint)
            assert (await sandbox.run_python("n")).value == value
            await sandbox.run_python("n.append(99)")
        await sandbox.reset()
        await sandbox.rollback(first)
        assert (await sandbox.run_python("n")).value == "[1]"
        await sandbox.run_python(
            "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
        )
        with pytest.raises(SandboxError, match="2 threads run in the interpreter"):
            await sandbox.checkpoint()

    session(body)


def test_files_go_in_and_out(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        data = bytes(range(256)) * 1000
        await sandbox.write_file("in/data.bin", data)
        assert (await sandbox.run_python("len(open('in/data.bin','rb').read())")).value == str(len(data))
        await sandbox.run_python("open('out.txt','w').write('done')")
        assert await sandbox.read_file("out.txt") == b"done"
        entries = {entry.path: entry for entry in await sandbox.list_files()}
        assert entries["in"].is_dir
        assert entries["in/data.bin"].size == len(data)
        for path in ("missing", "in", "../x", "/etc/passwd"):
            with pytest.raises(SandboxFileError, match=path.strip("./")):
                await sandbox.read_file(path)
        with pytest.raises(SandboxFileError, match="at most 10"):
            await sandbox.read_file("in/data.bin", max_bytes=10)

    session(body)


def test_background_processes_end_with_the_call_unless_they_may_stay(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> str:
        start = time.monotonic()
        await sandbox.bash("(sleep 0.4; echo late > late.txt) & (setsid sleep 100 >/dev/null 2>&1 &) ; echo started")
        assert time.monotonic() - start < 5
        await anyio.sleep(1.0)
        return " ".join(entry.path for entry in await sandbox.list_files())

    assert session(body) == ""
    assert session(body, SandboxPolicy(background="keep")) == "late.txt"


def test_too_much_output_is_stopped_and_counted(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        flood = await sandbox.bash("yes 0123456789 | head -c 300M")
        assert flood.status == "output_limit"
        assert flood.truncated
        assert len(flood.stdout) < 70_000
        assert b"bytes left out" in flood.stdout
        long = await sandbox.run_python("print('a' * 200_000)")
        assert (long.status, long.truncated) == ("ok", True)
        value = await sandbox.run_python("'b' * 200_000")
        assert value.value is not None
        assert len(value.value) < 12_000
        assert "bytes left out" in value.value

    session(body, SandboxPolicy(output_kill_bytes=4 << 20))


def test_after_close_every_call_says_so(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        await sandbox.close()
        await sandbox.close()
        for call in (
            sandbox.run_python("1"),
            sandbox.bash("true"),
            sandbox.read_file("x"),
            sandbox.list_files(),
            sandbox.reset(),
            sandbox.checkpoint(),
        ):
            with pytest.raises(SandboxClosed, match="closed"):
                await call
        await sandbox.cancel()

    session(body)


def test_closing_during_a_call_ends_the_call(session: Session) -> None:
    async def body(sandbox: SupervisedSandbox) -> None:
        results: list[CellResult] = []

        async def run() -> None:
            async for event in sandbox.stream("python", "print('partial', flush=True)\nwhile True: pass"):
                if isinstance(event, CellResult):
                    results.append(event)
                else:
                    printed.set()

        printed = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await printed.wait()
            await sandbox.close()
        assert (results[0].status, results[0].state, results[0].stdout) == ("session_dead", "lost", b"partial\n")

    session(body)
