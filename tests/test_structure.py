"""The map of the house: imports point downward, importing touches no device, files stay small."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "fedjax8"
RANKS = (
    {"display"},
    {"errors", "types", "version"},
    {"trees", "xla_cpu", "given", "keys", "lookup", "paths", "streams", "durable", "words", "directions", "staleness"},
    {"readers"},
    {"numerics", "data", "models", "participation", "results", "systems", "topologies"},
    {
        "codecs",
        "adapters",
        "callbacks",
        "config_fields",
        "executors",
        "privacy",
        "attacks",
        "dropouts",
        "local",
        "tasks",
        "hosts",
        "operations",
    },
    {"algorithms"},
    {"exchange"},
    {"engine"},
    {"running"},
    {
        "config",
        "components",
        "build",
        "run_format",
        "init_from",
        "introduction",
        "launch",
        "loading",
        "experimenting",
        "cli",
        "compilation_cache",
        "data_flag",
        "devices",
        "distributed",
        "normalization",
        "overrides",
        "rates",
        "shipped",
        "tune",
    },
    {
        "configs",
        "train",
        "evaluate",
        "compare",
        "plot",
        "convert",
        "fetch",
        "sweep",
        "pretrain",
        "listing",
        "templates",
    },
    {"__main__"},
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def place(module: str) -> str:
    """First part of a module below the package: `fedjax8.codecs.fp8` stands in `codecs`."""
    return module.split(".")[1] if "." in module else ""


def imported(file: pathlib.Path) -> set[str]:
    """fedjax8 modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= deeper if node.module == "fedjax8" else {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "fedjax8"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_downward(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in imported(file):
        other = place(module)
        both_files = not (PACKAGE / own).is_dir() and not (PACKAGE / other).is_dir()
        allowed = other == own or RANK[other] < RANK[own] or (both_files and RANK[other] == RANK[own])
        assert allowed, f"{file.name} (rank {RANK[own]}) imports {module} (rank {RANK[other]})"


def test_the_map_in_workspace_md_has_every_room_with_its_rank():
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", (ROOT / "WORKSPACE.md").read_text(), re.MULTILINE)
    mapped = {name: int(rank) for rank, places in rows for name in re.findall(r"`(\w+)(?:/|\.py)`", places)}
    assert mapped == RANK
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__"} == set(RANK)


def test_importing_the_package_touches_no_device():
    code = (
        "import fedjax8, fedjax8.train, fedjax8.build, pkgutil, importlib\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(fedjax8.__path__, 'fedjax8.')]\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'a backend was started'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_results_are_read_without_jax():
    code = (
        "import fedjax8.results as room, importlib, pkgutil, sys\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(room.__path__, 'fedjax8.results.')]\n"
        "assert 'jax' not in sys.modules, 'results import JAX'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_room_holds_more_than_its_share():
    """A share of 15 percent of the package's lines, beside components: files that are found by name, of which a room
    may have any number since none knows another."""
    texts = {f: f.read_text() for f in FILES}
    lines = {f: len(text.splitlines()) for f, text in texts.items() if "\nEXAMPLES = (" not in text}
    rooms: dict[str, int] = {}
    for file, count in lines.items():
        room = file.relative_to(PACKAGE).parts[0]
        rooms[room] = rooms.get(room, 0) + count
    assert {room: n for room, n in rooms.items() if n > 0.15 * sum(lines.values())} == {}


def test_files_are_small_enough_to_hold_in_mind():
    long = {str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 400}
    assert long == {}


def test_the_top_level_is_the_one_that_was_agreed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    visible = {name for name in top if not name.startswith(".")}
    assert visible <= {
        "fedjax8", "configs", "scripts", "tests", "docs", "examples", "setup.cfg", "pyproject.toml", "README.md",
        "WORKSPACE.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff",
    }  # fmt: skip
