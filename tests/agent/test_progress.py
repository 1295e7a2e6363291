"""The loading bar: on a terminal only, gone at the end, silent where loading is quick."""

from __future__ import annotations

import io

import pytest

from v32.agent.commands import progress
from v32.agent.commands.progress import loading_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_nothing() -> None:
    assert loading_bar(io.StringIO()) is None


def test_the_bar_grows_and_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    terminal = Terminal()
    bar = loading_bar(terminal)
    assert bar is not None
    for done in (1, 2, 3, 4):
        bar(done << 30, 4 << 30)
    *drawn, removed = terminal.getvalue().split("\r")[1:]
    assert [line.split()[-4:] for line in drawn] == [[f"{n}.0", "of", "4.0", "GiB"] for n in (1, 2, 3)]
    assert [line.count("#") for line in drawn] == [7, 15, 22]
    assert removed == "\x1b[2K"


def test_quick_loading_shows_nothing() -> None:
    terminal = Terminal()
    bar = loading_bar(terminal)
    assert bar is not None
    bar(1, 2)
    bar(2, 2)
    assert terminal.getvalue() == ""
