#!/usr/bin/env bash
# Runs the quick tests; any pytest argument may follow. Makes .venv on the first call.
# Each process begins with a half of the tests in their order, so that tests of one file share what it set up and compiled.
set -o pipefail
. "$(dirname "$0")/environment.sh" test
cd "$root"
exec "$python" -m pytest -n 2 --dist worksteal "$@"
