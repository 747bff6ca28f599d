#!/usr/bin/env bash
# One run on machines that Slurm lends: Ray starts on all of them, runs the command, and goes with the job.
#
#   sbatch --nodes 2 --gpus-per-node 4 cluster/slurm.sh \
#       python -m lead_ray.pretrain --data /shared/faces --out /shared/runs --workers 8 --device cuda
#   scancel JOB                                   # takes it down; the same sbatch goes on from the last checkpoint
#
# From the repository's folder, with the README's .venv in it, on storage that all nodes see. Costs what your centre
# charges for the nodes, at most until --time is over. Two minutes before that, or when the job is preempted, Slurm sends
# SIGTERM: the run keeps its step and ends with exit code 75, and the same sbatch goes on from there.
#SBATCH --job-name=lead-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=slurm-%j.log
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch [--nodes N --gpus-per-node G] cluster/slurm.sh python -m lead_ray.pretrain ..." >&2
    exit 2
fi

# shellcheck source=/dev/null
source "${LEAD_RAY_VENV:-.venv}/bin/activate"
export RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{ print $1 }')
port=$((20000 + SLURM_JOB_ID % 10000))  # another for each job; 10002-19999 belong to Ray's workers
gpus=${SLURM_GPUS_ON_NODE:-0}

started=()
stop() {  # only the processes that this script started: `ray stop` would end those of others as well
    for pid in "${started[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
}
trap stop EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ray start --head --block --node-ip-address="$address" --port="$port" \
    --num-gpus="$gpus" --dashboard-host=127.0.0.1 --disable-usage-stats &
started+=("$!")

for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap \
        ray start --block --address="$address:$port" --num-gpus="$gpus" &
    started+=("$!")
done

# Ray waits for workers that are still on their way; the head itself must answer.
for _ in $(seq 60); do
    ray status --address "$address:$port" >/dev/null 2>&1 && break
    sleep 2
done
RAY_ADDRESS="$address:$port" "$@" &
run=$!
# Slurm signals this script alone (B:). bash heeds it while it waits, and then waits no longer: hence a second time.
trap 'kill -TERM "$run" 2>/dev/null || true' TERM
wait "$run" || true
wait "$run"
