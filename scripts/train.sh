#!/usr/bin/env bash
# Runs the main job; any flag of `python -m fedjax8.train` may follow. Makes .venv on the first call.
set -o pipefail
. "$(dirname "$0")/environment.sh" plot,report
exec "$python" -m fedjax8.train "$@"
