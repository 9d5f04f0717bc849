#!/usr/bin/env bash
# Runs one experiment on all hosts of a TPU slice; flags of `python -m fedjax8.train` follow.
#   usage: scripts/tpu_train.sh NAME ZONE [FLAGS]      for example: scripts/tpu_train.sh pod us-central2-b --workdir=runs/a
# Copies what is committed here to every host and installs it there (minutes the first time, seconds after that). Host 0
# has the workdir. When a host is lost, the same command goes on from the last checkpoint.
set -euo pipefail
usage="usage: scripts/tpu_train.sh NAME ZONE [FLAGS]"
name="${1:?$usage}" zone="${2:?$usage}"
shift 2
cd "$(dirname "$0")/.."
packed="$(mktemp -d)"
trap 'rm -rf "$packed"' EXIT
git archive --format=tar.gz --output="$packed/fedjax8.tgz" HEAD

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

gcloud compute tpus tpu-vm scp "$packed/fedjax8.tgz" "$name:" --zone="$zone" --worker=all
on_all_hosts 'mkdir -p fedjax8 && tar xzf fedjax8.tgz -C fedjax8 && cd fedjax8 &&
    . scripts/environment.sh plot,report && "$python" -m pip install --quiet "jax[tpu]"'
on_all_hosts "cd fedjax8 && .venv/bin/python -m fedjax8.train --distributed $(printf '%q ' "$@")"
