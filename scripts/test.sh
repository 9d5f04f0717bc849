#!/usr/bin/env bash
# Runs the quick tests; any pytest argument may follow. Makes .venv on the first call.
set -o pipefail
. "$(dirname "$0")/environment.sh" test
cd "$root"
exec "$python" -m pytest -n 2 "$@"
