#!/usr/bin/env bash
# Runs one experiment on all hosts of a TPU slice; flags of `fedjax8 train` follow.
#   usage: tpu.sh NAME ZONE WHEEL [FLAGS]      for example: tpu.sh pod us-central2-b fedjax8-*.whl --workdir=runs/a
# Copies the wheel to every host and installs it there, in a virtual environment (minutes the first time, seconds after
# that). Host 0 has the workdir. When a host is lost, the same command goes on from the last checkpoint.
set -euo pipefail
usage="usage: tpu.sh NAME ZONE WHEEL [FLAGS]"
name="${1:?$usage}" zone="${2:?$usage}" wheel="${3:?$usage}"
shift 3

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

gcloud compute tpus tpu-vm scp "$wheel" "$name:" --zone="$zone" --worker=all
on_all_hosts "[ -x fedjax8/bin/python ] || python3 -m venv fedjax8
    fedjax8/bin/python -m pip install --quiet '$(basename "$wheel")[tpu,plot,report]'
    fedjax8/bin/python -m pip install --quiet --force-reinstall --no-deps '$(basename "$wheel")'"
on_all_hosts "fedjax8/bin/python -m fedjax8.train --distributed $(printf '%q ' "$@")"
