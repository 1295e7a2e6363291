"""A launch compiled for an architecture, and what its machine code says: registers, spills, memory, instructions."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from v32.kernels.aot.recorder import Launch
from v32.kernels.triton_support.gpu import GPUS, Gpu

_NVIDIA_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_MATRIX = r"\b([QHI]G?MMA[A-Z0-9_.]*|UTC[QHI]?MMA[A-Z0-9_.]*|v_mfma_\w+|v_wmma_\w+)"
_FP8_MATRIX = re.compile(r"QGMMA|QMMA|E4M3|fp8")
_TMEM_COLUMNS = 512


@dataclass(frozen=True)
class MachineCode:
    registers: int
    spilled_bytes: int
    shared_bytes: int
    tmem_columns: int
    matrix_instruction: str
    has_product: bool
    needs_fp8: bool
    traps: int
    num_warps: int
    seconds: float

    def occupancy(self, gpu: Gpu) -> float:
        """Warps that fit a multiprocessor at once, of those it could hold."""
        if gpu.is_amd:
            by_registers = 4 * min(8, 512 // max(-(-self.registers // 8) * 8, 1))
        else:
            by_registers = 65536 // (32 * max(-(-self.registers // 8) * 8, 1))
        by_shared = gpu.sm_shared_bytes // (self.shared_bytes + 1024) if self.shared_bytes else gpu.sm_programs
        programs = min(by_registers // self.num_warps, by_shared, gpu.sm_programs, gpu.sm_warps // self.num_warps)
        return programs * self.num_warps / gpu.sm_warps

    def faults(self, gpu: Gpu) -> list[str]:
        """Why this code must not be shipped; empty if it may."""
        found = []
        if self.spilled_bytes:
            found.append(f"spills {self.spilled_bytes} bytes")
        if self.traps:
            found.append("compiled to a trap")
        if self.shared_bytes > gpu.shared_bytes:
            found.append(f"needs {self.shared_bytes} bytes of shared memory, a program has {gpu.shared_bytes}")
        if self.tmem_columns > _TMEM_COLUMNS:
            found.append(f"needs {self.tmem_columns} columns of tensor memory of {_TMEM_COLUMNS}")
        if self.has_product and not self.matrix_instruction:
            found.append("no matrix instruction")
        if self.needs_fp8 and not _FP8_MATRIX.search(self.matrix_instruction):
            found.append(f"no FP8 matrix instruction, but {self.matrix_instruction}")
        return found


def compiled(launch: Launch, arch: str, cache: Path, limit_seconds: float) -> MachineCode | str:
    """The code, from `cache` if these sources were compiled before; or why there is none.

    Compilation runs in a process of its own, so that a compiler that crashes or never ends is one line of the table.
    """
    path = cache / f"{_fingerprint(launch, arch)}.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        child = os.fork()
        if child == 0:
            _compile_to(launch, arch, path)
        reason = _wait(child, limit_seconds)
        if not path.exists():
            return reason
    stored = json.loads(path.read_text())
    return str(stored["error"]) if "error" in stored else MachineCode(**stored)


def _fingerprint(launch: Launch, arch: str) -> str:
    reader = Path(__file__).read_text()  # what is stored is what this file has read in the code
    text = repr((triton.__version__, arch, launch.kernel.cache_key, launch[1:], reader))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _compile_to(launch: Launch, arch: str, path: Path) -> None:
    """Only in the child: never returns."""
    try:
        stored = asdict(_inspect(launch, arch))
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        stored = {"error": f"{type(error).__name__}: {lines[-1][:200] if lines else ''}"}
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(stored))
    partial.rename(path)
    os._exit(0)


def _wait(child: int, limit_seconds: float) -> str:
    import signal
    import time

    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return f"the compiler ended with status {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"not compiled within {limit_seconds:.0f} s"


def _inspect(launch: Launch, arch: str) -> MachineCode:
    import time

    started = time.monotonic()
    gpu = GPUS[arch]
    target = GPUTarget("hip", arch, 64) if gpu.is_amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    positions = {name: index for index, name in enumerate(launch.kernel.arg_names)}
    attrs = {(positions[name],): [["tt.divisibility", 16]] for name in launch.aligned}
    source = ASTSource(launch.kernel, launch.signature, constexprs=launch.values, attrs=attrs)
    code = triton.compile(source, target=target, options={**launch.options, "enable_fp_fusion": True})
    registers, spilled, assembly = _amd(code) if gpu.is_amd else _nvidia(code)
    instructions = Counter(re.findall(_MATRIX, assembly))
    ttir = code.asm["ttir"]
    return MachineCode(
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=code.metadata.shared,
        tmem_columns=getattr(code.metadata, "tmem_size", None) or 0,
        matrix_instruction=max(instructions, key=lambda name: instructions[name]) if instructions else "",
        has_product="tt.dot" in ttir,
        needs_fp8=gpu.has_fp8 and re.search(r"tt\.dot .*f8E4M3FN", ttir) is not None,
        traps=len(re.findall(r"^\s*trap;", code.asm.get("ptx", ""), re.M)),
        num_warps=code.metadata.num_warps,
        seconds=round(time.monotonic() - started, 1),
    )


def _nvidia(code: Any) -> tuple[int, int, str]:
    """Registers, bytes of local memory and the SASS."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        sass = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump names no resources: {usage[-200:]}")
    spilled = int(found[2]) + int(found[3])
    if not spilled and re.search(r"\b(STL|LDL)\b", sass):
        spilled = 4
    return int(found[1]), spilled, sass


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(_NVIDIA_TOOLS / tool), *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _amd(code: Any) -> tuple[int, int, str]:
    assembly = code.asm["amdgcn"]

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    # Scalar registers spill into lanes of vector registers, not to memory.
    spilled = max(4 * number("vgpr_spill_count"), number("private_segment_fixed_size"))
    return number("vgpr_count"), spilled, assembly
