"""Say which sandboxes work on this machine, what they enforce and by what; with --attack, try to break out."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attack", action="store_true", help="run the corpus of attacks and print a table")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    raise NotImplementedError
