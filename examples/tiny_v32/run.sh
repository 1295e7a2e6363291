#!/usr/bin/env bash
# Train, export, evaluate and draw the tiny checkpoint and its twin from nothing; start it again after any interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-runs/tiny}
mkdir -p "$folder"
train() { .venv/bin/torchrun --nproc-per-node "${RANKS:-2}" examples/tiny_v32/train.py "$folder" "$@"; }
evaluate() { .venv/bin/v32 eval tiny --model "$folder/checkpoint" --limit 550 --seed 7 --json "${@:2}" > "$folder/$1.jsonl"; }

train --checkpoint "$folder/checkpoint"
train --speciale --checkpoint "$folder/speciale/checkpoint"
evaluate greedy --no-grammar --greedy
evaluate sampled --no-grammar
evaluate greedy_grammar --greedy
evaluate sampled_grammar
.venv/bin/v32 eval reasoning --model "$folder/speciale/checkpoint" --limit 200 --json > "$folder/reasoning.jsonl"
.venv/bin/python examples/tiny_v32/table.py "$folder"/{greedy,sampled}{,_grammar}.jsonl
.venv/bin/python examples/tiny_v32/plot.py "$folder/log.jsonl" "$folder/curve.png"
