# Sourced by the scripts beside it: makes .venv where needed and puts it first on PATH.
# Installs again only when setup.cfg, the Python version or the extras wanted have changed.
#   usage: . scripts/environment.sh EXTRAS
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "fedjax8 needs Python 3.11 or newer, but $python is $("$python" --version); set PYTHON=/path/to/python3.11" >&2
    exit 2
fi
stamp=".venv/installed-${1:-core}"
wanted="$("$python" --version) $(cksum setup.cfg pyproject.toml | tr '\n' ' ')"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "installing fedjax8 and what it needs into .venv (a few minutes, once)" >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}" 2>&1 |
        { grep -v '^WARNING: ' >&2 || true; }
    .venv/bin/python -c 'import fedjax8'
    echo "$wanted" >"$stamp"
fi
PATH="$PWD/.venv/bin:$PATH"
