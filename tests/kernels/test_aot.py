"""The compile gate: what it records is what would run, what it calls a fault is one, and the small set passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest


def run_gate(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "v32.kernels.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_small_set_may_ship() -> None:
    """With every commit; only what has changed is compiled, in about ten seconds if it is all."""
    done = run_gate("--small")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_small_set_compiles_without_a_fault_and_is_cached(tmp_path: Path) -> None:
    first = run_gate("--small", "--json", "--cache", str(tmp_path))
    assert first.returncode == 0, first.stdout + first.stderr
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert {row["arch"] for row in rows} == {"sm_80", "sm_90"}
    assert all(row["registers"] > 0 and row["faults"] == [] for row in rows)
    # Seconds of compilation come from the cache, so equal output means that nothing was compiled again.
    assert run_gate("--small", "--json", "--cache", str(tmp_path)).stdout == first.stdout


@pytest.mark.slow
def test_an_fp8_product_is_an_fp8_instruction_on_hopper(tmp_path: Path) -> None:
    done = run_gate("--op", "fp8_gemm", "--arch", "sm_90", "--json", "--cache", str(tmp_path))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    native = [row for row in rows if row.get("needs_fp8")]
    assert native
    assert all("QGMMA" in row["matrix_instruction"] for row in native)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_kernel_that_does_not_compile_in_time_is_a_fault(tmp_path: Path) -> None:
    done = run_gate("--op", "hadamard", "--arch", "sm_90", "--limit", "0", "--json", "--cache", str(tmp_path))
    assert done.returncode == 1
    assert "not compiled within 0 s" in done.stdout


def test_each_fault_is_named() -> None:
    from v32.kernels.aot.machine_code import MachineCode
    from v32.kernels.triton_support.gpu import GPUS

    good = MachineCode(64, 0, 40_000, 0, "QGMMA.64", True, True, 0, 4, 1.0)
    hopper = GPUS["sm_90"]
    assert good.faults(hopper) == []
    bad = {
        "spills 8 bytes": replace(good, spilled_bytes=8),
        "compiled to a trap": replace(good, traps=1),
        "a program has 232448": replace(good, shared_bytes=240_000),
        "576 columns of tensor memory": replace(good, tmem_columns=576),
        "no matrix instruction": replace(good, matrix_instruction="", needs_fp8=False),
        "no FP8 matrix instruction, but HMMA": replace(good, matrix_instruction="HMMA.16816"),
    }
    for message, code in bad.items():
        (fault,) = code.faults(hopper)
        assert message in fault


def test_occupancy_is_bounded_by_registers_shared_memory_and_warps() -> None:
    from v32.kernels.aot.machine_code import MachineCode
    from v32.kernels.triton_support.gpu import GPUS

    code = MachineCode(32, 0, 0, 0, "", False, False, 0, 4, 1.0)
    assert code.occupancy(GPUS["sm_90"]) == 1.0
    assert replace(code, registers=128).occupancy(GPUS["sm_90"]) == 16 / 64
    assert replace(code, shared_bytes=100 * 1024).occupancy(GPUS["sm_90"]) == 8 / 64
    assert replace(code, registers=256).occupancy(GPUS["gfx942"]) == 8 / 32
