#!/bin/bash
# Runs `virnucpro predict` on all GPUs of several nodes. If the time is too short, the job continues
# in further turns:
#
#   sbatch --nodes=4 examples/slurm.sh contigs.fasta -o /shared/results -m 500
#
# Each node gets one launcher, which starts one process for each GPU of the node. Shortly before the
# time ends, or when SLURM needs the nodes for other jobs, every process finishes the part that it
# is writing. The job then goes back into the queue. Its next turn computes what is missing.
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
# The processes meet on the first node. The port comes from the job's number, so that two jobs do
# not take the same port.
MEETING_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MEETING_PORT=$(( 20000 + SLURM_JOB_ID % 10000 ))
export MEETING_NODE MEETING_PORT

# Python then imports no modules from the working directory.
export PYTHONSAFEPATH=1

# Each node reads the variables in single quotes for itself.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --multi_gpu \
    --num_machines "$SLURM_NNODES" --num_processes '$ours' --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MEETING_NODE" --main_process_port "$MEETING_PORT" \
    --rdzv_backend virnucpro --rdzv_conf "rank=$SLURM_NODEID" \
    --mixed_precision no --dynamo_backend no \
    -m virnucpro predict --resume "$@"' launcher "$@" &
step=$!

# SLURM sends the signal only to this script (B:). The script passes it on to the launchers, and the
# launchers pass it on to their processes.
trap 'time_is_up=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
wait "$step"; code=$?
if [[ -n ${time_is_up-} ]]; then
    wait "$step"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
