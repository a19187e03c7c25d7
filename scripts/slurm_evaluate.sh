#!/usr/bin/env bash
# Evaluate a model in as many parts as a Slurm array has tasks, from the repository:
#   sbatch --array 0-7 scripts/slurm_evaluate.sh model.onnx --annotations val.json --images val/
# Each part is a file in PARTS (parts/). When all are there:
#   atss evaluate --results parts/*.json --annotations val.json
#SBATCH --job-name=atss-evaluate
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --output=slurm-%x-%A-%a.log
set -euo pipefail
[ ! -f .venv/bin/activate ] || source .venv/bin/activate
exec python -m runtime.evaluate "$@" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
    --results-out "${PARTS:-parts}/part$SLURM_ARRAY_TASK_ID.json"
