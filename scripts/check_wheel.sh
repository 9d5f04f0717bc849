#!/usr/bin/env bash
# Builds the wheel, installs it with all that it needs into an empty environment, and runs from there, in an empty
# folder, what README promises and the tasks of tests/user_tasks. PYTHON names another Python, EXTRAS other extras.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
extras="${EXTRAS:-plot,report,tensorboard,csv,hf}"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 FEDJAX8_CACHE="$place/cache"
unset PYTHONPATH

say() { echo "== $*"; }

say "the wheel"
mkdir "$place/source" # a copy, so that neither an old build/ nor a new one is in the way
cp -r "$root"/{fedjax8,setup.cfg,pyproject.toml,README.md,LICENSE} "$place/source"
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir="$place" "$place/source" 2>&1 | { grep -v '^WARNING: ' || true; }

say "installing it"
wheel="$(echo "$place"/fedjax8-*.whl)"
"$place/venv/bin/python" -m pip install --quiet "$wheel[$extras]" 2>&1 | { grep -v '^WARNING: ' || true; }
mkdir "$place/work"
cd "$place/work"
export PATH="$place/venv/bin:$PATH"
python -c 'import fedjax8, sys; sys.exit(not fedjax8.__file__.startswith(sys.prefix))'

say "the commands"
fedjax8 version
fedjax8 --help >/dev/null
for kind in "" codecs algorithms uniform configs fields; do
    fedjax8 list $kind >/dev/null
done
fedjax8 template slurm | bash -n
fedjax8 train --config.rounds=2 --workdir=runs/fp8
fedjax8 train --config=digits_float32 --config.rounds=2 --workdir=runs/float32 >/dev/null
{ fedjax8 train --config=fashion_mnist_fp8 --data_dir=. 2>&1 || [ $? = 2 ]; } | grep -q fashion_mnist # it asks for the data
fedjax8 compare runs/float32 runs/fp8 >/dev/null
[ -s comparison.html ]
fedjax8 plot runs/float32 runs/fp8 --out=accuracy.png
[ -s accuracy.png ]
fedjax8 sweep --out=runs/rates --grid="config.client.optimizer.learning_rate=0.05,0.1" --config.rounds=2 >/dev/null

for task in "$root"/tests/user_tasks/*.py; do
    needed="$(sed -nE "1s/.*fedjax8\[([a-z]+)\].*/\1/p" "$task")"
    if [[ -n "$needed" && ",$extras," != *",$needed,"* ]]; then
        say "$(basename "$task") skipped: needs the extra $needed, name it in EXTRAS"
        continue
    fi
    say "$(basename "$task")"
    mkdir "$(basename "$task" .py)"
    (cd "$(basename "$task" .py)" && python "$task")
done
say "all of it works from the wheel"
