#!/usr/bin/env bash
# Train, export, evaluate and draw the tiny checkpoint and its twin from nothing; start it again after any interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-runs/tiny}
mkdir -p "$folder"
train() { .venv/bin/torchrun --nproc-per-node "${RANKS:-2}" examples/tiny_v32/train.py "$folder" "$@"; }
evaluate() { .venv/bin/v32 eval "$@" --seed 1 --json | tail -n 1; }

train --checkpoint "$folder/checkpoint"
train --speciale --checkpoint "$folder/speciale/checkpoint"
evaluate tiny --model "$folder/checkpoint" --limit 550 | tee "$folder/eval.json"
evaluate reasoning --model "$folder/speciale/checkpoint" --limit 200 | tee "$folder/speciale/eval.json"
.venv/bin/python examples/tiny_v32/plot.py "$folder/log.jsonl" "$folder/curve.png"
