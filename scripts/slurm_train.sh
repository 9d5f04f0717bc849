#!/usr/bin/env bash
# Front of fedjax8/templates/slurm.sh, which says how to use it, for a job submitted from the repository:
#   sbatch --nodes=4 --ntasks-per-node=1 --cpus-per-task=32 scripts/slurm_train.sh --workdir=runs/a
# It makes the repository's environment once, before the processes start.
#SBATCH --job-name=fedjax8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
cd "${SLURM_SUBMIT_DIR:?this script is for sbatch}"
. scripts/environment.sh plot,report
FEDJAX8_PYTHON="$python" exec bash fedjax8/templates/slurm.sh "$@"
