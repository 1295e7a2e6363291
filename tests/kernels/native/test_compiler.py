"""The library is built once; without a compiler everything works and the remedy is said once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRODUCT = """
import torch
from v32.kernels.fp8_gemm import fp8_gemm
from v32.kernels.native import library
for _ in range(2):
    y = fp8_gemm(torch.ones(1, 8), torch.ones(4, 8).to(torch.float8_e4m3fn), torch.ones(1, 1))
print(library() is not None, y.tolist())
"""
SUM = [[8.0] * 4]


def start(**environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRODUCT],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_pytorch_computes_and_the_remedy_is_said_once(compiler: str, tmp_path: Path) -> None:
    out, err = start(CXX=compiler, V32_NATIVE_CACHE=str(tmp_path)).communicate(timeout=120)
    assert out == f"False {SUM}\n"
    assert err.count("no native CPU kernels") == 1
    assert "install a C++17 compiler" in err


@pytest.mark.slow
def test_it_can_be_turned_off() -> None:
    assert start(V32_NATIVE="0").communicate(timeout=120) == (f"False {SUM}\n", "")


@pytest.mark.slow
def test_processes_that_start_together_build_one_library(tmp_path: Path) -> None:
    flags = {"V32_NATIVE_CACHE": str(tmp_path), "V32_NATIVE_FLAGS": "-O0"}
    for process in [start(**flags) for _ in range(2)]:
        assert process.communicate(timeout=300) == (f"True {SUM}\n", "")
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]
