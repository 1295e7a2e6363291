"""Print reports of `v32 eval --json` side by side, as in the model card:

$ python examples/tiny_v32/table.py runs/tiny/greedy.jsonl runs/tiny/sampled.jsonl
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(*files: str) -> None:
    reports = [_report(Path(file)) for file in files]
    _row("", *(Path(file).stem.replace("_", ", ") for file in files))
    _row(*("---" for _ in range(len(files) + 1)))
    _row("tasks", *(report["n"] for report in reports))
    _row("exact (95% interval)", *(_interval(report) for report in reports))
    for kind in reports[0]["by_kind"]:
        _row(kind, *(f"{report['by_kind'][kind]['success']:.0%}" for report in reports))
    _row("calls, tokens", *(f"{report['tool_calls']:,}, {report['tokens']:,}" for report in reports))


def _report(file: Path) -> dict[str, Any]:
    """The last line of the evaluation's output."""
    report: dict[str, Any] = json.loads(file.read_text().splitlines()[-1])
    return report


def _interval(report: dict[str, Any]) -> str:
    low, high = report["ci95"]
    return f"{report['success']:.1%} ({low:.1%} - {high:.1%})"


def _row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
