from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import numpy
import pytest

from tests.conftest import open_descriptors
from v32.tools import RawTool, Tool, ToolContext, ToolDefinitionError, ToolError, ToolOutput, tool
from v32.tools.errors import WorkerError
from v32.tools.function_tool import to_output

pytestmark = pytest.mark.anyio


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


async def test_a_tool_is_still_the_function(context: ToolContext) -> None:
    assert add(1, b=2) == 3
    assert add.__name__ == "add"
    assert add.__doc__ == "Add two numbers."
    assert isinstance(add, Tool)
    assert (await add.call({"a": 1}, context)).text == "2"


async def test_options_of_the_decorator(context: ToolContext) -> None:
    @tool(name="plus", description="Sum.", timeout=3, in_worker=False)
    def f(a: int) -> int:
        return a

    assert (f.name, f.description, f.timeout, f.in_worker) == ("plus", "Sum.", 3, False)


async def test_async_functions_run_on_the_loop(context: ToolContext) -> None:
    seen: list[int] = []

    @tool
    async def f(a: int) -> None:
        await anyio.sleep(0)
        seen.append(a)

    assert await f.call({"a": 7}, context) == ToolOutput("done")
    assert seen == [7]
    with pytest.raises(ToolDefinitionError, match="is async"):
        tool(in_worker=True)(f.function)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\n", "as it is\n"),
        (None, "done"),
        (3, "3"),
        (True, "true"),
        ({"é": [1, 2.5, None]}, '{"é": [1, 2.5, null]}'),
        ([(1, 2), {3}], "[[1, 2], [3]]"),
        (object, "\"<class 'object'>\""),
        (ToolOutput("x", True), "x"),
    ],
)
def test_what_a_function_returns_becomes_text(value: Any, text: str) -> None:
    assert to_output(value).text == text


async def test_raw_tools_get_what_json_gave(context: ToolContext) -> None:
    schema = {"type": "object", "properties": {"when": {"type": "string", "format": "date"}}}
    made = RawTool("f", "F.", schema, lambda when: type(when).__name__)
    assert made.parameters is schema
    assert (await made.call({"when": "2025-12-01"}, context)).text == "str"


async def test_a_worker_sees_closures_and_lambdas_and_keeps_its_changes_to_itself(context: ToolContext) -> None:
    state = {"n": 1}
    unpicklable = (i for i in range(3))

    @tool
    def bump() -> list[int]:
        state["n"] += 1
        return [state["n"], next(unpicklable), os.getpid()]

    first, second = [(await bump.call({}, context)).text for _ in range(2)]
    assert first.startswith("[2, 0, ")
    assert second.startswith("[2, 0, ")
    assert first != second
    assert state == {"n": 1}
    state["n"] = 10
    assert (await bump.call({}, context)).text.startswith("[11, 0, ")


async def test_out_of_the_worker_state_is_kept(context: ToolContext) -> None:
    class Counter:
        n = 0

        def bump(self) -> int:
            self.n += 1
            return self.n

    counter = Counter()
    made = tool(counter.bump)
    assert not made.in_worker
    await made.call({}, context)
    assert (await made.call({}, context)).text == "2"


async def test_a_worker_reports_failures_by_name(context: ToolContext) -> None:
    @tool
    def unknown(name: str) -> str:
        raise ToolError(f"unknown name {name!r}; did you mean 'Jorna'?")

    @tool
    def broken() -> float:
        return 1 / 0

    @tool
    def leaves(code: int) -> None:
        os._exit(code)

    @tool
    def killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @tool
    def exits() -> None:
        sys.exit("bye")

    with pytest.raises(ToolError, match=r"^unknown name 'Jorn'; did you mean 'Jorna'\?$"):
        await unknown.call({"name": "Jorn"}, context)
    with pytest.raises(WorkerError, match=r"^ZeroDivisionError: division by zero$") as caught:
        await broken.call({}, context)
    assert "return 1 / 0" in caught.value.traceback
    for code in (0, 3):
        with pytest.raises(WorkerError, match=f"its process ended with exit code {code} before it returned"):
            await leaves.call({"code": code}, context)
    with pytest.raises(WorkerError, match="its process was ended by SIGKILL"):
        await killed.call({}, context)
    with pytest.raises(WorkerError, match="SystemExit: bye"):
        await exits.call({}, context)


@tool
def hang() -> None:
    """Never return."""
    while True:
        pass


async def test_a_hanging_function_is_killed_while_its_siblings_go_on(context: ToolContext, tmp_path: Path) -> None:
    @tool
    def spawns() -> None:
        marker.write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
        time.sleep(1000)

    marker = tmp_path / "pid"
    marker.touch()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(hang.call, {}, context)
            group.start_soon(spawns.call, {}, context)
            assert (await add.call({"a": 1}, context)).text == "2"
            while not marker.read_text():
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        while is_running(int(marker.read_text())):  # killed, and dying
            await anyio.sleep(0.01)
    await all_are_reaped()


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def all_are_reaped() -> None:
    """Soon, by a thread."""
    with anyio.fail_after(5):
        while True:
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            await anyio.sleep(0.01)


async def test_workers_leave_nothing_behind(context: ToolContext) -> None:
    await add.call({"a": 1}, context)
    before = open_descriptors()
    for _ in range(20):
        await add.call({"a": 1}, context)
        with anyio.move_on_after(0.01):
            await hang.call({}, context)
    assert open_descriptors() == before
    await all_are_reaped()


async def test_workers_do_not_share_their_randomness(context: ToolContext) -> None:
    @tool
    def draw() -> tuple[float, float]:
        return random.random(), numpy.random.random()

    numpy.random.random()  # from here on the host has a state that workers could share
    drawn = [json.loads((await draw.call({}, context)).text) for _ in range(4)]
    assert all(len(set(numbers)) == 4 for numbers in zip(*drawn, strict=True))


async def test_large_results_and_odd_data_pass(context: ToolContext) -> None:
    @tool
    def large() -> ToolOutput:
        return ToolOutput("x" * 3_000_000, data={"odd": lambda: 0, "plain": 1})

    output = await large.call({}, context)
    assert len(output.text) == 3_000_000
    assert output.data["plain"] == "1"
    assert output.data["odd"].startswith("<function")


async def test_a_worker_may_run_its_own_event_loop(context: ToolContext) -> None:
    import asyncio

    async def inner() -> int:
        await asyncio.sleep(0)
        return 5

    @tool
    def outer() -> int:
        return asyncio.run(inner())

    assert (await outer.call({}, context)).text == "5"


@pytest.mark.slow
def test_a_worker_does_not_write_to_standard_output() -> None:
    program = (
        "import anyio\nfrom v32.tools import tool, ToolContext\n"
        "print('host', end=' ')\n"
        "@tool\ndef f() -> None:\n    print('worker')\n"
        "anyio.run(f.call, {}, ToolContext('c'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "host "
    assert done.stderr == "worker\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_a_worker_dies_with_its_host(tmp_path: Any) -> None:
    program = (
        "import anyio, os, time\nfrom v32.tools import tool, ToolContext\n@tool\ndef f() -> None:\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
        "anyio.run(f.call, {}, ToolContext('c'))\n"
    )
    host = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        time.sleep(0.01)
    worker = int((tmp_path / "pid").read_text())
    assert is_running(worker)
    host.kill()
    host.wait()
    while time.monotonic() < deadline and is_running(worker):
        time.sleep(0.01)
    assert not is_running(worker)


def test_importing_tools_is_light() -> None:
    program = "import sys, v32.tools; print(*sorted({'pydantic', 'jsonschema', 'httpx', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
