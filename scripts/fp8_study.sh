#!/usr/bin/env bash
# The runs behind docs/studies/fp8.md: every method on both splits, three seeds. A run that is there already is resumed.
#   usage: scripts/fp8_study.sh OUT_DIR DATA_DIR [SEEDS]      for example: scripts/fp8_study.sh runs/fp8 data "0 1 2"
# Runs one after another; start it several times, each with its own seeds, to use more machines.
set -euo pipefail
usage="usage: scripts/fp8_study.sh OUT_DIR DATA_DIR [SEEDS]"
out="$(mkdir -p "${1:?$usage}" && cd "$1" && pwd)"
data="$(cd "${2:?$usage}" && pwd)"
cd "$(dirname "$0")/.."
. scripts/environment.sh plot,report
for seed in ${3:-0 1 2}; do
    for split in iid dirichlet; do
        for method in float32 uq uq_plus biased no_qat; do
            "$python" -m fedjax8.train --config="configs/fp8.py:cifar10,lenet5,$split,$method,e4m3fnuz" \
                --config.seed="$seed" --config.rounds=60 --config.eval_every=2 --config.client.epochs=1 \
                --cpu_devices="${CPU_DEVICES:-1}" --data_dir="$data" --workdir="$out/$split-$method-seed$seed"
        done
    done
done
