"""Compiled programs are found again by the next run, in a folder that stays small, and never in the way."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from fedjax8 import compilation_cache
from fedjax8.compilation_cache import default_folder, prune, use_compilation_cache

ROOT = pathlib.Path(__file__).parents[1]
OPTIONS = ("jax_enable_compilation_cache", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def no_cache_yet(monkeypatch):
    """JAX as it starts: no cache is set."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("FEDJAX8_CACHE", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_environment_names_the_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_folder({}) == pathlib.Path("/home/ann/.cache/fedjax8/xla")
    assert default_folder({"XDG_CACHE_HOME": "/c"}) == pathlib.Path("/c/fedjax8/xla")
    assert default_folder({"XDG_CACHE_HOME": "/c", "FEDJAX8_CACHE": "~/d"}) == pathlib.Path("/home/ann/d/xla")
    assert default_folder({"XDG_CACHE_HOME": ""}) == default_folder({"FEDJAX8_CACHE": ""}) == default_folder({})


def test_jax_is_given_a_folder_for_this_kind_of_processor(no_cache_yet, tmp_path):
    folder = use_compilation_cache(str(tmp_path))
    assert folder.is_dir() and folder.parent == tmp_path
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_cache_of_the_users_own_stays(no_cache_yet, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX8_CACHE", str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_jax_told_to_keep_nothing_keeps_nothing(no_cache_yet, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX8_CACHE", str(tmp_path / "ours"))
    jax.config.update("jax_enable_compilation_cache", False)
    assert use_compilation_cache() is None
    assert not (tmp_path / "ours").exists()


def test_off_is_off(no_cache_yet):
    assert use_compilation_cache("off") is None
    assert not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_written_is_a_sentence(no_cache_yet, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert use_compilation_cache(str(tmp_path / "file")) is None
    said = capsys.readouterr().err
    assert "compiled programs are not kept" in said and "Not a directory" in said and said.count("\n") == 1
    assert jax.config.jax_compilation_cache_dir is None


def test_programs_unused_for_longest_go_first(tmp_path):
    for age, name in enumerate(("newest", "middle", "oldest")):
        (tmp_path / "cpu").mkdir(exist_ok=True)
        path = tmp_path / "cpu" / f"{name}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    os.utime(tmp_path / "cpu" / "middle-cache", (2_000_000, 999_999))  # read again after it was written
    prune(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*-cache")) == ["middle-cache", "newest-cache"]
    prune(tmp_path, 199)
    assert [path.name for path in tmp_path.rglob("*-cache")] == ["middle-cache"]


def test_the_bound_holds_at_the_start_of_a_run(no_cache_yet, tmp_path, monkeypatch):
    (tmp_path / "old-cache").write_bytes(bytes(100))
    monkeypatch.setattr(compilation_cache, "LARGEST_BYTES", 99)
    use_compilation_cache(str(tmp_path))
    assert not (tmp_path / "old-cache").exists()


def started(cache, hash_seed, workdir, *flags):
    """Output of a short run, and its lines of metrics without times."""
    environment = os.environ | {"FEDJAX8_CACHE": str(cache), "PYTHONHASHSEED": str(hash_seed), "JAX_PLATFORMS": "cpu"}
    environment |= {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": ""}
    command = [sys.executable, "-m", "fedjax8.train", "--config.rounds=2", f"--workdir={workdir}", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""
    return (workdir / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_gives_the_same_numbers(tmp_path):
    """Whatever order Python's sets have in it; seed 5 gave another order of sums than 1 where a set was iterated."""
    import json

    without_times = lambda text: [
        {k: v for k, v in json.loads(line).items() if not k.endswith("_seconds")} for line in text.splitlines()
    ]
    first = started(tmp_path / "cache", 1, tmp_path / "a")
    entries = {path.name for path in (tmp_path / "cache").rglob("*-cache")}
    assert len(entries) > 5
    second = started(tmp_path / "cache", 5, tmp_path / "b")
    assert {path.name for path in (tmp_path / "cache").rglob("*-cache")} == entries
    apart = started(tmp_path / "cache", 1, tmp_path / "c", "--compilation_cache=off")
    assert without_times(first) == without_times(second) == without_times(apart)
