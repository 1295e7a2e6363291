"""Train the tiny checkpoint from nothing, or go on where a run was stopped; export it when it is done.

$ torchrun --nproc-per-node 2 examples/tiny_v32/train.py runs/tiny
"""

import argparse
from pathlib import Path

import torch

from v32.agent.training.recipe import STAGES, export, train

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where state, log and tokenizer are kept")
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint", help="where the result is written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one process a core is faster than threads at these sizes
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model = train(arguments.folder, STAGES, seed=arguments.seed)
    print("written, fingerprint", export(arguments.folder, model, arguments.checkpoint))


if __name__ == "__main__":
    main()
