"""`torchrun -m v32` is `v32` on several processes: the same words, and an end of all when one dies or hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STALL_SECONDS = 5
pytestmark = pytest.mark.slow


@contextmanager
def v32(num_ranks: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)] if num_ranks else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "V32_RANK_SECONDS": str(STALL_SECONDS)}
    command = [sys.executable, *launch, "-m", "v32", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def results(num_ranks: int) -> list[dict[str, Any]]:
    with v32(num_ranks, "eval", "tiny", "--json", "--limit", "4", "--seed", "3", "--greedy") as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_two_processes_answer_what_one_answers() -> None:
    assert sorted(results(2), key=repr) == sorted(results(0), key=repr)


def test_only_rank_0_talks_and_commands_without_a_model_end_at_once() -> None:
    for arguments, words in ((["run", "--help"], "usage: v32 run"), (["plan", "--gpu", "h200"], "on H200: fits")):
        with v32(2, *arguments) as launched:
            out, err = launched.communicate(timeout=120)
        assert launched.returncode == 0, err
        assert out.count(words) == 1


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_job_and_every_process(blow: signal.Signals) -> None:
    with v32(2, "eval", "tiny", "--json", "--limit", "500", "--seed", "3") as process:
        assert process.stdout is not None
        assert process.stdout.readline(), process.communicate()[1]  # an answer: the model is loaded
        ranks = {_environment(pid).get("RANK"): pid for pid in _children(process.pid)}
        os.kill(ranks["1"], blow)
        # torchrun gives processes that do not end by themselves 30 s; a minute more is for a busy machine.
        _, err = process.communicate(timeout=STALL_SECONDS + 30 + 60)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL) received" in err or "has not answered within its time" in err
    assert not [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def _environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
