#!/usr/bin/env bash
# Front of fedjax8/templates/tpu.sh: builds the wheel of what lies here and hands it on.
#   usage: scripts/tpu_train.sh NAME ZONE [FLAGS]      for example: scripts/tpu_train.sh pod us-central2-b --workdir=runs/a
set -euo pipefail
usage="usage: scripts/tpu_train.sh NAME ZONE [FLAGS]"
name="${1:?$usage}" zone="${2:?$usage}"
shift 2
cd "$(dirname "$0")/.."
. scripts/environment.sh plot,report
packed="$(mktemp -d)"
trap 'rm -rf "$packed"' EXIT
"$python" -m pip wheel --quiet --no-deps --wheel-dir="$packed" .
bash fedjax8/templates/tpu.sh "$name" "$zone" "$packed"/fedjax8-*.whl "$@"
