"""Train the tiny checkpoint from nothing, or go on where a run was stopped; export it when it is done.

$ torchrun --nproc-per-node 2 examples/tiny_v32/train.py runs/tiny
$ torchrun --nproc-per-node 2 examples/tiny_v32/train.py runs/tiny --speciale    # its twin, afterwards
"""

import argparse
import shutil
from pathlib import Path

import torch

from v32.agent.training import recipe

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where state, log and tokenizer are kept")
    parser.add_argument("--speciale", action="store_true", help="train the twin that reasons without tools")
    parser.add_argument("--checkpoint", type=Path, help="where the result is written (default: checkpoint, speciale)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one process a core is faster than threads at these sizes
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print("written, fingerprint", (_speciale if arguments.speciale else _tiny)(arguments))


def _tiny(arguments: argparse.Namespace) -> str:
    model = recipe.train(arguments.folder, recipe.STAGES, seed=arguments.seed)
    return recipe.export(arguments.folder, model, arguments.checkpoint or HERE / "checkpoint")


def _speciale(arguments: argparse.Namespace) -> str:
    folder = arguments.folder / "speciale"
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(arguments.folder / name, folder)
    base = recipe.trained_model(arguments.folder)
    model = recipe.train_speciale(folder, recipe.SPECIALE_STAGES, base, seed=arguments.seed)
    return recipe.export(folder, model, arguments.checkpoint or HERE / "speciale", variant="speciale")


if __name__ == "__main__":
    main()
