"""A command starts without the slower half of torch, and whoever needs it finds it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def last_line(program: str) -> str:
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return run.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_command_answers_without_what_only_compilers_of_models_need() -> None:
    program = """
import sys
from v32.agent.cli import main
sys.argv = ["v32", "run", "Hello", "--max-new-tokens", "1"]
main()
import gc
print("torch" in sys.modules, "torch._prims" in sys.modules, gc.isenabled())
"""
    assert last_line(program) == "True False True"


@pytest.mark.slow
def test_what_was_left_out_is_there_when_it_is_named() -> None:
    program = """
from v32.agent.startup import shorten_torch_import
shorten_torch_import()
import sys, torch
torch.Generator().manual_seed(1)
with torch.device("meta"):
    torch.nn.Linear(3, 4)(torch.empty(2, 3))
before = "torch._prims" in sys.modules
from torch._meta_registrations import register_meta
import torch._meta_registrations as found
print(before, callable(register_meta), found.__file__.endswith("_meta_registrations.py"))
"""
    assert last_line(program) == "False True True"


@pytest.mark.slow
def test_the_compiler_finds_what_it_needs() -> None:
    program = """
from v32.agent.startup import shorten_torch_import
shorten_torch_import()
import torch
import torch._meta_registrations as stand_in
import torch._dynamo
from torch._meta_registrations import register_meta
compiled = torch.compile(lambda x: x + 1, backend="eager")
print(compiled(torch.ones(1)).item(), stand_in.register_meta is register_meta)
"""
    assert last_line(program) == "2.0 True"


def test_a_process_that_has_torch_keeps_what_it_has() -> None:
    import torch._meta_registrations as before

    from v32.agent.startup import shorten_torch_import

    shorten_torch_import()
    assert sys.modules["torch._meta_registrations"] is before
