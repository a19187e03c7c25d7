#!/usr/bin/env bash
# From a fresh clone to a trained, exported, verified and scored detector, on two CPU cores in at most eight minutes:
#   scripts/quickstart.sh
# Everything is written to runs/quickstart and data/shapes. A second call continues where the first one stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
# Waiting threads spin briefly, as those of `atss` do (runtime/waiting.py), unless the environment says how they wait.
[ -n "${OMP_WAIT_POLICY:-}" ] || export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
# Otherwise glibc returns a step's memory to the system, which clears it for the next step: 5 % of the time.
export MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TOP_PAD_=268435456
started=$(date +%s)
recipe=atss_quick
train_images=2000
val_images=300
data=data/shapes
run=runs/quickstart
say() { printf '\n== %s\n' "$*"; }

say "1/8 environment (.venv)"
scripts/setup.sh edge
python=.venv/bin/python

say "2/8 forecast: timing a few images and training steps on this machine"
if [ -e $data/shapes.json ]; then to_draw=0; else to_draw=$((train_images + val_images)); fi
$python scripts/quickstart_estimate.py $recipe --num-images $to_draw --run $run/train --spent $(($(date +%s) - started))

say "3/8 data: $train_images + $val_images images with 8 classes of shapes in $data"
$python -m train.shapes $data --train $train_images --val $val_images

say "4/8 training $recipe into $run/train (follow it with: .venv/bin/tensorboard --logdir $run/train)"
$python -m train $recipe --out $run/train --resume \
  --data.train-json $data/train.json --data.train-images $data/train \
  --data.val-json $data/val.json --data.val-images $data/val
$python -m train.plot $run/train

say "5/8 the torch model's AP on the held-back images"
$python -m train.validate $run/train/last.pt --annotations $data/val.json --images $data/val --json $run/torch.json

say "6/8 export to ONNX, and verification of the file"
$python export/to_onnx.py $run/train/last.pt -o $run/model.onnx

say "7/8 the deployed file's AP, with the same evaluator"
$python -m runtime.evaluate $run/model.onnx --annotations $data/val.json --images $data/val --json $run/onnx.json \
  --results-out $run/results.json
$python -m runtime.show $run/results.json --annotations $data/val.json --images $data/val --out $run/images

say "8/8 the anchors that each object is trained on"
$python -m train.show_assignment $recipe --annotations $data/val.json --images $data/val --out $run/assignment

say "done"
$python scripts/quickstart_summary.py $run $(($(date +%s) - started))
