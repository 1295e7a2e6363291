"""A control group is taken where this user may make one, with every limit written, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from v32.sandboxes.cgroup import Cgroup, open_cgroup
from v32.sandboxes.sandbox import SandboxPolicy

POLICY = SandboxPolicy(memory_bytes=1 << 28, max_processes=50, cpus=1.5)


def fake_v2(root: Path, handed_down: str) -> Path:
    """A tree as systemd delegates it: the user's slice hands controllers to its children."""
    (root / "cgroup.controllers").write_text("cpu memory pids")
    slice_ = root / "user.slice" / "app.slice"
    scope = slice_ / "shell.scope"
    scope.mkdir(parents=True)
    for folder in (root / "user.slice", slice_, scope):
        (folder / "cgroup.procs").touch()
        (folder / "cgroup.subtree_control").write_text("")
    (slice_ / "cgroup.subtree_control").write_text(handed_down)
    return slice_


def test_version_2_takes_the_nearest_ancestor_that_hands_down_the_controllers(tmp_path: Path) -> None:
    slice_ = fake_v2(tmp_path, "cpu memory pids")
    cgroup = open_cgroup(POLICY, tmp_path, "0::/user.slice/app.slice/shell.scope\n")
    assert cgroup is not None
    assert cgroup.version == 2
    assert cgroup.memory.parent == slice_
    assert cgroup.directories == [cgroup.memory]
    assert (cgroup.memory / "memory.max").read_text() == str(1 << 28)
    assert (cgroup.memory / "pids.max").read_text() == "54"
    assert (cgroup.memory / "cpu.max").read_text() == "150000 100000"


def test_version_2_without_the_cpu_controller_limits_the_rest(tmp_path: Path) -> None:
    fake_v2(tmp_path, "memory pids")
    cgroup = open_cgroup(POLICY, tmp_path, "0::/user.slice/app.slice/shell.scope\n")
    assert cgroup is not None
    assert cgroup.cpu is None


@pytest.mark.parametrize("handed_down", ["", "cpu", "memory"])
def test_without_memory_and_pids_there_is_none(tmp_path: Path, handed_down: str) -> None:
    fake_v2(tmp_path, handed_down)
    assert open_cgroup(POLICY, tmp_path, "0::/user.slice/app.slice/shell.scope\n") is None


def test_version_1_takes_one_directory_for_each_controller(tmp_path: Path) -> None:
    for controller in ("memory", "pids", "cpu"):
        (tmp_path / controller / "mine").mkdir(parents=True)
    cgroup = open_cgroup(POLICY, tmp_path, "4:memory:/mine\n3:pids:/mine\n2:cpu,cpuacct:/mine\n")
    assert cgroup is not None
    assert cgroup.version == 1
    assert len(cgroup.directories) == 3
    assert (cgroup.memory / "memory.limit_in_bytes").read_text() == str(1 << 28)
    assert cgroup.cpu is not None
    assert (cgroup.cpu / "cpu.cfs_quota_us").read_text() == "150000"


def test_a_hierarchy_that_cannot_be_written_gives_none_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "pids").write_text("in the way")
    assert open_cgroup(POLICY, tmp_path, "4:memory:/\n3:pids:/\n") is None
    assert list((tmp_path / "memory").iterdir()) == []


def test_kills_are_counted_in_both_versions(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    (tmp_path / "pids.events").write_text("max 7\n")
    assert Cgroup(2, tmp_path, tmp_path, None).memory_kills() == 2
    assert Cgroup(1, tmp_path, tmp_path, None).memory_kills() == 5
    assert Cgroup(1, tmp_path, tmp_path, None).refused_forks() == 7
