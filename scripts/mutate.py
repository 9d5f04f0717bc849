"""Puts plausible faults into a copy of the repository, one at a time, and reports which of them the tests notice.

    python scripts/mutate.py                          all faults of scripts/faults.toml
    python scripts/mutate.py --room=codecs            those of one room
    python scripts/mutate.py --only=quantile          those with this word in their name
    python scripts/mutate.py --list                   names them and runs nothing

A fault replaces an exact text, which must stand in its file exactly once, and names the tests that should fail on it.
It is noticed if one of them fails; a test that cannot even be collected, or takes more than ten minutes, is an error
and not a notice. The repository itself is never changed. Ends with the share that is noticed; status 1 if that is below
95 %, 2 if a text does not stand in its file exactly once or tests could not be run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("faults.toml")
WANTED = 0.95
TEST_SECONDS = 600
COPIED = ("fedjax8", "tests", "scripts", "configs", "examples", "pyproject.toml", "setup.cfg", "README.md")
PASSED, FAILED = 0, 1
"""Statuses of pytest: all tests passed; all ran, and some failed."""


class Fault(NamedTuple):
    """One plausible fault."""

    room: str
    name: str
    """The fault, as a sentence."""
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest."""


class StaleFault(ValueError):
    """A text that does not stand in its file exactly once."""


def read_faults(file: Path = LIST) -> list[Fault]:
    """The faults of a TOML file with tables `[[fault]]`."""
    entries = tomllib.loads(file.read_text())["fault"]
    return [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def faulty(text: str, fault: Fault) -> str:
    """The text of the fault's file with the fault in it; StaleFault if its text isn't there exactly once."""
    count = text.count(fault.old)
    if count != 1 or fault.new == fault.old:
        raise StaleFault(f"{fault.name}: the text to replace stands {count} times in {fault.file}: {fault.old!r}")
    return text.replace(fault.old, fault.new)


def copy_of(root: Path, folder: Path) -> Path:
    """A copy of the files that tests need, which shares the cache of compiled programs with `root`."""
    folder.mkdir()
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy(root / name, folder / name)
    (root / ".pytest_cache" / "jax").mkdir(parents=True, exist_ok=True)
    (folder / ".pytest_cache").symlink_to(root / ".pytest_cache", target_is_directory=True)
    return folder


def run_tests(folder: Path, tests: Sequence[str]) -> int:
    """Status of pytest for these tests of the copy."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", "-m", "", *tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TEST_SECONDS)
    if done.returncode not in (PASSED, FAILED):
        print((done.stdout + done.stderr)[-2000:], file=sys.stderr)
    return done.returncode


def noticed(folder: Path, fault: Fault) -> bool:
    """Whether a test of the copy fails with the fault in it; the copy is afterwards as it was.

    Raises StaleFault, and RuntimeError where the tests could not be run.
    """
    file = folder / fault.file
    sound = file.read_text()
    file.write_text(faulty(sound, fault))
    try:
        status = run_tests(folder, fault.tests)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{fault.name}: tests took more than {TEST_SECONDS} s") from error
    finally:
        file.write_text(sound)
    if status not in (PASSED, FAILED):
        raise RuntimeError(f"{fault.name}: pytest ended with status {status}: {' '.join(fault.tests)}")
    return status == FAILED


def summary(results: Sequence[bool]) -> str:
    """Number and share of noticed faults, in one line."""
    share = sum(results) / len(results) if results else 0.0
    return f"{sum(results)} of {len(results)} faults noticed, {share:.1%}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT, file: Path | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--room", help="faults of this room alone")
    parser.add_argument("--only", default="", help="faults with this in their name alone")
    parser.add_argument("--list", action="store_true", help="names the faults and runs nothing")
    given = parser.parse_args(arguments)
    every = read_faults(file or LIST)
    rooms = sorted({fault.room for fault in every})
    if given.room is not None and given.room not in rooms:
        parser.error(f"--room is {given.room!r}; there are {', '.join(rooms)}")
    faults = [f for f in every if given.room in (None, f.room) and given.only in f.name]
    for fault in faults:
        try:
            faulty((root / fault.file).read_text(), fault)
        except StaleFault as error:
            print(error, file=sys.stderr)
            return 2
        if given.list:
            print(f"{fault.room:11} {fault.name}  ({fault.file})")
    if given.list:
        print(f"{len(faults)} faults")
        return 0
    results, broken = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_of(root, Path(scratch) / "copy")
        for fault in faults:
            try:
                results.append(noticed(folder, fault))
                print(f"{'noticed' if results[-1] else 'NOT NOTICED':11} {fault.room:11} {fault.name}", flush=True)
            except RuntimeError as error:
                broken += 1
                print(f"{'ERROR':11} {fault.room:11} {error}", flush=True)
    print(summary(results))
    if broken or not results:
        return 2
    return 0 if sum(results) >= WANTED * len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
