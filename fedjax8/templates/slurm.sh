#!/usr/bin/env bash
# Runs one experiment on the nodes of a Slurm job; flags of `fedjax8 train` follow. fedjax8 must be installed in the
# environment from which the job is submitted (FEDJAX8_PYTHON: another Python), on a file system that all nodes see:
#   fedjax8 template slurm > slurm.sh
#   CPU nodes, one process each:      sbatch --nodes=4 --ntasks-per-node=1 --cpus-per-task=32 slurm.sh --workdir=runs/a
#   GPU nodes, one process per GPU:   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 slurm.sh --workdir=runs/a
# Two minutes before the time limit the run is told to stop: it saves, and the job is queued again; likewise when a
# process or a node is lost. With the same --workdir it goes on where it was.
#SBATCH --job-name=fedjax8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
cd "${SLURM_SUBMIT_DIR:?this script is for sbatch}"
srun --kill-on-bad-exit=1 "${FEDJAX8_PYTHON:-python3}" -m fedjax8.train --distributed "$@"
status=$?
case "$status" in
    0 | 2 | 130) exit "$status" ;; # done, a mistake in the flags, interrupted by hand
esac
if [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    echo "ended with status $status; queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
