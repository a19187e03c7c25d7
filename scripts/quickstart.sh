#!/usr/bin/env bash
# From a fresh clone to a trained, exported, verified and scored detector, on a CPU, in under a quarter of an hour:
#   scripts/quickstart.sh
# Everything lands in runs/quickstart and data/shapes. Run it again and it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
# Threads that spin while they wait make a shared machine many times slower, and gain nothing on a quiet one.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
started=$(date +%s)
data=data/shapes
run=runs/quickstart
say() { printf '\n== %s\n' "$*"; }

say "1/7 environment (.venv)"
scripts/setup.sh
python=.venv/bin/python

say "2/7 data: drawing pictures with 8 classes of shapes into $data"
$python -m train.shapes $data --train 4000 --val 400

say "3/7 training atss_tiny into $run/train (follow it with: .venv/bin/tensorboard --logdir $run/train)"
$python -m train atss_tiny --out $run/train --resume \
  --data.train-json $data/train.json --data.train-images $data/train \
  --data.val-json $data/val.json --data.val-images $data/val
$python -m train.plot $run/train

say "4/7 the torch model's AP on the held-back pictures"
$python -m train.validate $run/train/last.pt --annotations $data/val.json --images $data/val --json $run/torch.json

say "5/7 export to ONNX, and verification of what came out"
$python export/to_onnx.py $run/train/last.pt -o $run/model.onnx

say "6/7 the deployed file's AP, by the same evaluator"
$python -m runtime.evaluate $run/model.onnx --annotations $data/val.json --images $data/val --json $run/onnx.json \
  --results-out $run/results.json
$python -m runtime.show $run/results.json --annotations $data/val.json --images $data/val --out $run/pictures

say "7/7 which anchors each object got"
$python -m train.show_assignment atss_tiny --annotations $data/val.json --images $data/val --out $run/assignment

say "done"
$python scripts/quickstart_summary.py $run $(($(date +%s) - started))
