"""From the C++ sources to a shared library: compiled once for these sources, this compiler and this processor.

    $XDG_CACHE_HOME/v32/native/<digest>.so       V32_NATIVE_CACHE names another folder

The library is written beside its place and renamed, so that processes that start together never see half of one.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast")
REMEDY = "install a C++17 compiler with OpenMP (Debian: apt-get install g++; conda: gxx)"
TIMEOUT_SECONDS = 300


class NativeUnavailable(RuntimeError):
    """The native kernels cannot be used here; the message says why and what to do. PyTorch computes instead."""


def shared_library() -> Path:
    """The compiled library; compiles it at the first call after sources, compiler or processor have changed."""
    compiler = _compiler()
    flags = [*FLAGS, _architecture_flag(), *os.environ.get("V32_NATIVE_FLAGS", "").split()]
    path = _cache_folder() / f"{_digest(compiler, flags)}.so"
    if not path.exists():
        _compile(compiler, flags, path)
    return path


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        if found := shutil.which(name):
            return found
    raise NativeUnavailable(f"there is no {wanted or 'C++ compiler'}; {REMEDY}")


def _architecture_flag() -> str:
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _cache_folder() -> Path:
    if folder := os.environ.get("V32_NATIVE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "v32" / "native"


def _digest(compiler: str, flags: list[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted([*KERNELS.glob("*/*.cpp"), *KERNELS.glob("*/*.h")]):
        digest.update(source.relative_to(KERNELS).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    # A compiler is known by its file: asking it for its version would take a process at each start.
    stat = os.stat(compiler)
    digest.update(f"{os.path.realpath(compiler)} {stat.st_size} {stat.st_mtime_ns} {flags} {_processor()}".encode())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What `native` means to the compiler: a cache folder may be shared by different machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join(line for line in text.splitlines() if line.split("\t")[0].strip(": ") in wanted)


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=path.parent) as folder:
            built = Path(folder) / path.name
            command = [compiler, *flags, str(KERNELS / "native" / "all.cpp"), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
            if done.returncode:
                raise NativeUnavailable(f"{compiler} failed: {_first_error(done.stderr)}; {REMEDY}")
            built.replace(path)
    except OSError as error:
        raise NativeUnavailable(f"{error}; set V32_NATIVE_CACHE to a folder that can be written") from error
    except subprocess.TimeoutExpired:
        raise NativeUnavailable(f"{compiler} took more than {TIMEOUT_SECONDS} s; {REMEDY}") from None


def _first_error(text: str) -> str:
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")
