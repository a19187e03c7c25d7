#!/usr/bin/env bash
# Train on several nodes of a Slurm cluster, from the repository:
#   sbatch --nodes 4 scripts/slurm_train.sh RECIPE --out runs/NAME [--setting value …]
# The folder of --out must be shared. A process or a node that fails costs the steps since the last checkpoint, not the
# run: torchrun starts all processes anew, and Slurm queues the job again; both go on from last.pt by themselves.
#SBATCH --job-name=atss-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail
[ ! -f .venv/bin/activate ] || source .venv/bin/activate
read -r meeting_node < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
meeting_port=$((20000 + SLURM_JOB_ID % 20000))
# The job's number as the run's id: processes that find their own id in --out continue that run.
exec srun python -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${PROCESSES_PER_NODE:-gpu}" --max-restarts "${MAX_RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-endpoint "$meeting_node:$meeting_port" --rdzv-id "$SLURM_JOB_ID" \
    -m train "$@"
