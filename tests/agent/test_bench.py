"""`v32 bench` measures what was asked for, as text, JSON and a picture, and refuses what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from v32.agent.cli import main

SMALL = ("--alone", "--prefill", "16", "--context", "8", "--batch", "0", "--session", "2")


@pytest.mark.slow
def test_a_measurement_is_a_line_of_json_and_a_bar_of_the_chart(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    chart = tmp_path / "chart.png"
    assert main(["bench", *SMALL, "--json", "--chart", str(chart)]) == 0
    measured = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {m["name"] for m in measured} >= {"load", "prefill", "decode", "session", "memory"}
    assert all(m["value"] > 0 for m in measured)
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--speculative", "9"), "0 to 7"),
        (("--speculative", "1", "--memory-budget", "1GiB"), "leave out --memory-budget"),
        (("--prefill", "512,x"), "not a list of numbers"),
        (("--make", "s600m"), "needs the folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(
    options: tuple[str, ...], problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == 2
    said = capfd.readouterr().err
    assert problem in said
    assert said.count("\n") == 1
