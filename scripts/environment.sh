# Sourced by the scripts beside it: makes .venv where needed, and leaves its Python in $python and the repository in $root.
# Installs again only when setup.cfg, pyproject.toml, the Python version or the extras wanted have changed.
#   usage: . scripts/environment.sh EXTRAS
set -eu
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
base="${PYTHON:-python3}"
if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "fedjax8 needs Python 3.11 or newer, but $base is $("$base" --version); set PYTHON=/path/to/python3.11" >&2
    exit 2
fi
python="$root/.venv/bin/python"
stamp="$root/.venv/installed-${1:-core}"
version="$("$base" --version)"
wanted="$version $(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "installing fedjax8 and what it needs into .venv (a few minutes, once)" >&2
    [ -x "$python" ] && [ "$("$python" --version)" = "$version" ] || "$base" -m venv --clear "$root/.venv"
    "$python" -m pip install --quiet --disable-pip-version-check --editable "$root${1:+[$1]}" 2>&1 |
        { grep -v '^WARNING: ' >&2 || true; }
    "$python" -c 'import fedjax8'
    echo "$wanted" >"$stamp"
fi
