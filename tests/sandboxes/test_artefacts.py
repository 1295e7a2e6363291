"""Nothing that a hostile tree holds makes the host read, write or hang outside the directory it was given."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from v32.sandboxes import artefacts
from v32.sandboxes.artefacts import ArtefactError

LIMIT = 1 << 16
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("canary")
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    folder = tmp_path / "workspace"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield folder, fd
    os.close(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(NAMES, min_size=1, max_size=4), st.binary(max_size=500))
def test_what_was_written_is_read(workspace: tuple[Path, int], names: list[str], data: bytes) -> None:
    path = "f/" + "/".join(f"d{name}" for name in names[:-1]) + "/" + names[-1]
    artefacts.write(workspace[1], path, data)
    assert artefacts.read(workspace[1], path, LIMIT) == data
    stats, paths, _ = artefacts.walk(workspace[1])
    assert path.replace("//", "/") in paths or len(names) > artefacts.MAX_DEPTH - 2
    assert len(stats) == len(paths)


@pytest.mark.parametrize(
    "path", ["../outside/secret", "/etc/passwd", "a/../../outside/secret", "..", "/workspace/../x"]
)
def test_paths_outside_are_refused(workspace: tuple[Path, int], outside: Path, path: str) -> None:
    for attempt in (
        lambda: artefacts.read(workspace[1], path, LIMIT),
        lambda: artefacts.write(workspace[1], path, b"x"),
    ):
        with pytest.raises(ArtefactError, match="outside the workspace"):
            attempt()
    assert (outside / "secret").read_text() == "canary"


@pytest.mark.parametrize("path", ["", ".", "/workspace/", "a\0b", "a\ud800b"])
def test_names_that_are_none_are_refused(workspace: tuple[Path, int], path: str) -> None:
    with pytest.raises(ArtefactError, match="is not the name of a file"):
        artefacts.read(workspace[1], path, LIMIT)


def test_the_workspace_may_be_named_absolutely(workspace: tuple[Path, int]) -> None:
    artefacts.write(workspace[1], "/workspace/a/b", b"x")
    assert artefacts.read(workspace[1], "a/b", LIMIT) == b"x"


def test_links_are_not_followed(workspace: tuple[Path, int], outside: Path) -> None:
    folder, fd = workspace
    (folder / "file").symlink_to(outside / "secret")
    (folder / "inside").symlink_to("real")
    (folder / "real").write_text("fine")
    (folder / "folder").symlink_to(outside)
    (folder / "proc").symlink_to("/proc/self")
    for path in ("file", "inside", "folder/secret", "proc/environ"):
        with pytest.raises(ArtefactError, match=r"link|not a directory"):
            artefacts.read(fd, path, LIMIT)
    with pytest.raises(ArtefactError):
        artefacts.write(fd, "folder/planted", b"x")
    assert not (outside / "planted").exists()
    assert artefacts.walk(fd)[1] == ["real"]


def test_writing_over_a_link_replaces_the_link(workspace: tuple[Path, int], outside: Path) -> None:
    folder, fd = workspace
    (folder / "file").symlink_to(outside / "secret")
    artefacts.write(fd, "file", b"new")
    assert artefacts.read(fd, "file", LIMIT) == b"new"
    assert (outside / "secret").read_text() == "canary"


def test_what_is_no_regular_file_is_named_and_does_not_block(workspace: tuple[Path, int]) -> None:
    folder, fd = workspace
    os.mkfifo(folder / "pipe")
    (folder / "directory").mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    start = time.monotonic()
    for path, kind in (("pipe", "pipe"), ("directory", "directory"), ("socket", "socket")):
        with pytest.raises(ArtefactError, match=kind):
            artefacts.read(fd, path, LIMIT)
    server.close()
    assert time.monotonic() - start < 1.0


def test_the_limit_holds_for_sparse_and_for_growing_files(workspace: tuple[Path, int]) -> None:
    folder, fd = workspace
    with open(folder / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtefactError, match="1,099,511,627,776 bytes"):
        artefacts.read(fd, "sparse", LIMIT)
    (folder / "exact").write_bytes(b"12345")
    assert artefacts.read(fd, "exact", 5) == b"12345"


def test_a_swap_during_the_read_never_shows_the_secret(workspace: tuple[Path, int], outside: Path) -> None:
    folder, fd = workspace
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            os.symlink(outside / "secret", folder / "x1")
            os.replace(folder / "x1", folder / "out")
            (folder / "x2").write_text("good")
            os.replace(folder / "x2", folder / "out")

    thread = threading.Thread(target=swap)
    thread.start()
    good = plain = 0
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < 0.5 or (elapsed < 20 and not (good and plain)):
        try:
            assert artefacts.read(fd, "out", LIMIT) in (b"good", b"")
            good += 1
        except ArtefactError:
            pass
        with contextlib.suppress(OSError):
            plain += (folder / "out").read_text() == "canary"  # what the usual code does
    done.set()
    thread.join()
    assert good
    assert plain, "the race did not run: this test proves nothing"


def test_a_listing_is_bounded_in_entries_and_depth(workspace: tuple[Path, int]) -> None:
    folder, fd = workspace
    deep = folder
    for _ in range(12):
        deep /= "d"
        deep.mkdir()
    for number in range(30):
        (folder / f"f{number}").touch()
    _, paths, complete = artefacts.walk(fd, max_entries=20)
    assert len(paths) == 20
    assert not complete
    _, paths, complete = artefacts.walk(fd, max_depth=3)
    assert max(path.count("/") for path in paths) == 2
    assert not complete
    assert artefacts.walk(fd, max_depth=20)[2]


def test_it_is_also_a_program(workspace: tuple[Path, int]) -> None:
    folder, _ = workspace
    program = [sys.executable, "-I", "-S", artefacts.__file__, str(folder)]
    subprocess.run([*program, "write", "a/b"], input=b"data", check=True)
    assert subprocess.run([*program, "read", "a/b", "100"], capture_output=True, check=True).stdout == b"data"
    listed = subprocess.run([*program, "list"], capture_output=True, check=True).stdout.split(b"\0")
    assert [record.split(b" ", 3)[3] for record in listed[:-1]] == [b"a", b"a/b"]
    refused = subprocess.run([*program, "read", "a", "100"], capture_output=True)
    assert refused.returncode == 3
    assert b"directory" in refused.stderr
