"""Draw the learning curve of a run: python examples/tiny_v32/plot.py runs/tiny/log.jsonl curve.png"""

import json
import sys
from itertools import groupby
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def main(log: str, picture: str) -> None:
    lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
    reports = [line for line in lines if "accuracy" in line]
    tests = [line for line in lines if "exact" in line]
    figure, axes = plt.subplots(figsize=(8, 4.8), dpi=110, layout="constrained")
    colors: dict[str, str] = {}
    for stage, of_stage in groupby(reports, key=lambda line: line["stage"]):
        some = list(of_stage)
        label = None if stage in colors else f"token accuracy, {stage}"
        color = colors.setdefault(stage, f"C{len(colors)}")
        axes.plot([x["tokens"] / 1e6 for x in some], [x["accuracy"] for x in some], color, label=label)
    axes.plot([x["tokens"] / 1e6 for x in tests], [x["exact"] for x in tests], "ko", label="held-out tasks, exact")
    axes.set(xlabel="tokens seen, millions", ylabel="share", ylim=(0, 1.02), title="The tiny checkpoint learning")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
