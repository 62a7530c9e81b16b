#!/bin/bash
# Runs `virnucpro predict` on all GPUs of several nodes, in as many turns as it takes:
#
#   sbatch --nodes=4 examples/slurm.sh contigs.fasta -o /shared/results -p 500_model.pth
#
# Each node gets one launcher, which starts a process for each of the node's GPUs. When the time is
# nearly up, or the nodes are wanted for others, all processes finish the part that they are
# writing, and the job goes back into the queue. Its next turn computes what is missing.
#SBATCH --job-name=virnucpro
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120

ours=$(( ${SLURM_GPUS_ON_NODE:-1} * SLURM_NNODES ))
# Where the processes meet: the first node, and a port that no other job of ours takes.
export MEETING_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MEETING_PORT=$(( 20000 + SLURM_JOB_ID % 10000 ))

# Variables in single quotes are read on each node.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --multi_gpu \
    --num_machines "$SLURM_NNODES" --num_processes '$ours' --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MEETING_NODE" --main_process_port "$MEETING_PORT" \
    --mixed_precision no --dynamo_backend no \
    -m virnucpro predict --resume "$@"' launcher "$@" &
step=$!

# SLURM tells this script alone (B:); it tells the launchers, and they tell their processes.
trap 'time_is_up=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
wait "$step"; code=$?
if [[ -n ${time_is_up-} ]]; then
    wait "$step"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
