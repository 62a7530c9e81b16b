#!/bin/bash
# Runs one share of `virnucpro predict` in each job of an array. The jobs need no network between
# them. A last job makes one run of all shares:
#
#   array=$(sbatch --parsable --array=1-8 examples/slurm_array.sh contigs.fasta results -m 500)
#   sbatch --dependency=afterok:$array --wrap "virnucpro merge results/share_* -o results/merged"
#
# The arguments are the input, the directory for the shares, and further options of predict. If a job
# fails or its time ends, give both commands again: finished work is kept.
#SBATCH --job-name=virnucpro
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -eu
# Python then imports no modules from the working directory.
export PYTHONSAFEPATH=1
input=$1
shares=$2
shift 2
exec srun virnucpro predict "$input" -o "$shares/share_$SLURM_ARRAY_TASK_ID" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --resume "$@"
