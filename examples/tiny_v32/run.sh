#!/usr/bin/env bash
# Train, export, evaluate and draw the tiny checkpoint from nothing; start it again after any interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-runs/tiny}
mkdir -p "$folder"
.venv/bin/torchrun --nproc-per-node "${RANKS:-2}" examples/tiny_v32/train.py "$folder" --checkpoint "$folder/checkpoint"
.venv/bin/v32 eval tiny --model "$folder/checkpoint" --limit 110 --seed 1 --json | tail -n 1 | tee "$folder/eval.json"
.venv/bin/python examples/tiny_v32/plot.py "$folder/log.jsonl" "$folder/curve.png"
