"""Runs an experiment for every point of a grid and every seed, some at a time, and prints one table at the end.

    python -m fedjax8.sweep --out=runs/rates --grid="config.client.optimizer.learning_rate=0.05,0.1" --seeds=0,1,2

  --config=NAME[:argument]       as in training; may be given several times, each is then a value of the grid
  --grid="config.FIELD=A,B"      values of a field; several grids are combined
  --case="config.F=A config.G=B" fields that change together; each case is a value of the grid, "" the config as it is
  --seeds=0,1,2                  a run for each
  --jobs=N                       runs at a time; CPU cores are shared out among them
  --gpus=0,1                     GPUs to share out, a run on each at a time
  --margin=0.01                  gains in the table only within so much of the first point's best value; see compare
  --csv=FILE, --latex=FILE       the table as a file too
  --slurm=write, --slurm=submit  one Slurm array job instead, in OUT/sweep.sh; --sbatch="--gpus=1 --time=2:00:00" for it

All other flags go to every run: --config.rounds=100 --data_dir=DIR --writers=tensorboard.

The same command again skips finished runs, goes on with others, and adds what is new in the grid. A run that fails does
not stop the others: its log is OUT/logs/NAME.txt, and the exit status is then 1. Ctrl-C lets runs save and end.
"""

import functools
import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from fedjax8 import cli
from fedjax8.compare import print_comparison
from fedjax8.config import load_config, override, plain, validate
from fedjax8.directions import in_words
from fedjax8.errors import UserError
from fedjax8.results.comparison import compare_runs
from fedjax8.results.figures import write_whole
from fedjax8.results.gain import MARGIN
from fedjax8.results.log import number
from fedjax8.results.record import measures_in
from fedjax8.results.runs import short_name
from fedjax8.results.tables import as_csv, as_latex
from fedjax8.running.console import readable_number
from fedjax8.running.signals import STOPS
from fedjax8.running.workdir import json_ready
from fedjax8.shipped import SCHEME

POLL_SECONDS = 0.1
NAME_LENGTH = 150
"""Longest name of a folder, in characters; file systems allow 255 bytes."""
TOO_MANY = 10_000
"""Points from which a comma too many is likelier than a sweep that large."""


class Point(NamedTuple):
    """One run of the sweep."""

    name: str
    command: tuple[str, ...]
    folder: Path
    config: Any
    """Its config, as `config.json` has it."""


class Failure(NamedTuple):
    """A run that ended with an error."""

    name: str
    status: int
    line: str
    """The last line that it wrote."""


def split_values(text: str) -> list[str]:
    """Parts between the commas that stand outside of brackets and quotes.

    >>> split_values("0.1,(5, 5),'a,b'")
    ['0.1', '(5, 5)', "'a,b'"]
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
    return [part.strip() for part in parts]


def assignment(text: str, flag: str) -> tuple[str, str]:
    """(field, value) of `config.FIELD=VALUE`; dashes in front are allowed."""
    name, equals, value = text.strip().lstrip("-").partition("=")
    if not equals or not name.startswith("config."):
        raise UserError(f"{flag}: give config.FIELD=VALUE, such as config.client.epochs=2; got {text!r}")
    return name.removeprefix("config."), value


def axes(configs: Sequence[str], cases: Sequence[str], grids: Sequence[str]) -> list[list[tuple[str, tuple]]]:
    """The axes of the grid: on each, the values as (config file, assignments)."""
    made: list[list[tuple[str, tuple]]] = [[(config, ()) for config in configs or ("",)]]
    if cases:
        made.append([("", tuple(assignment(part, "--case") for part in shlex.split(case))) for case in cases])
    for grid in grids:
        field, values = assignment(grid, "--grid")
        made.append([("", ((field, value),)) for value in split_values(values)])
    return made


def resolved(config_file: str, assignments: Iterable[tuple[str, str]]) -> ConfigDict:
    """The config of a point; UserError for fields and values that cannot be."""
    config = load_config(config_file)
    override(config, list(assignments))
    validate(config)
    return config


def define_flags() -> None:
    """Registers the flags; not done on import, since other command lines have flags of the same names."""
    flags.DEFINE_string("out", None, "Folder of the sweep, with a folder for each run.")
    flags.DEFINE_multi_string("config", [], "Config file; several are values of the grid.")
    flags.DEFINE_multi_string("grid", [], "Values of a field: config.FIELD=A,B,C. Several are combined.")
    flags.DEFINE_multi_string("case", [], "Fields that change together: config.FIELD=A config.OTHER=B.")
    flags.DEFINE_list("seeds", ["0"], "A run for each.")
    flags.DEFINE_integer("jobs", None, "Runs at a time; by default one, or one for each GPU named.", lower_bound=1)
    flags.DEFINE_list("gpus", [], "Numbers of the GPUs to share out, a run on each at a time.")
    flags.DEFINE_enum("slurm", None, ["write", "submit"], "Write one Slurm array job, or write and submit it.")
    flags.DEFINE_string("sbatch", "", "Options of the array job, such as --gpus=1 --time=2:00:00.")
    flags.DEFINE_float("margin", MARGIN, "Of the table: how far from the reference's best value a setting has a gain.")
    flags.DEFINE_string("csv", None, "File to write the table to, for other programs.")
    flags.DEFINE_string("latex", None, "File to write the table to, as a tabular with rules of booktabs.")
    flags.DEFINE_string("command", None, "What runs one point; default: this Python -m fedjax8.train.")


def make_points(out: Path, command: Sequence[str], others: Sequence[str]) -> list[Point]:
    """All points, checked as far as that can be done without building them."""
    grid = axes(flags.FLAGS.config, flags.FLAGS.case, flags.FLAGS.grid)
    shared = [assignment(flag, "sweep") for flag in others if flag.startswith("--config.")]
    chosen = list(itertools.product(*grid))
    if len(chosen) * len(flags.FLAGS.seeds) > TOO_MANY:
        raise UserError(f"{len(chosen) * len(flags.FLAGS.seeds):,} runs are more than {TOO_MANY:,}; give smaller grids")
    fields = list(dict.fromkeys(field for axis in grid for _, assigned in axis for field, _ in assigned))
    points = {}
    for parts in chosen:
        config_file = parts[0][0]
        assigned = [pair for _, pairs in parts for pair in pairs]
        names = [f"{short_name(field, fields)}={value}" for field, value in assigned]
        if flags.FLAGS.case and not parts[1][1]:
            names.insert(0, "base")
        if len(flags.FLAGS.config) > 1:
            stem, _, argument = config_file.removeprefix(SCHEME).partition(":")
            names.insert(0, f"{Path(stem).stem}{argument and '-'}{argument}")
        for seed in flags.FLAGS.seeds:
            name = path_name([*names, f"seed={seed}"])
            if name in points:
                raise UserError(f"two points of the grid are {name}; give each value once")
            own = [*assigned, ("seed", seed)]
            config = json.loads(json.dumps(json_ready(plain(resolved(config_file, [*shared, *own])))))
            flags_of_point = [f"--config={config_file}"] if config_file else []
            flags_of_point += [*others, *(f"--config.{field}={value}" for field, value in own)]
            folder = out / name
            points[name] = Point(name, (*command, *flags_of_point, f"--workdir={folder}"), folder, config)
    return list(points.values())


def path_name(parts: Sequence[str]) -> str:
    """A name for a folder, in which nothing needs quoting in a shell."""
    plain_parts = (re.sub(r"""[][()'" ]""", "", part).replace(",", "-").strip("-") for part in parts)
    name = ",".join(re.sub(r"[^\w.=+-]+", "_", part) for part in plain_parts)
    if len(name) <= NAME_LENGTH:
        return name
    import hashlib

    return f"{name[: NAME_LENGTH - 20]}-{hashlib.sha256(name.encode()).hexdigest()[:8]},{parts[-1]}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_finished(point: Point) -> bool:
    """Whether the run in its folder has ended, and is of the point's config."""
    ended = read_json(point.folder / "summary.json").get("finished", False)
    return bool(ended) and read_json(point.folder / "config.json").get("config") == point.config


class Runner:
    """Local processes, at most so many at a time. A signal ends them, as they like; a second one, at once."""

    def __init__(self, points: Sequence[Point], logs: Path, jobs: int, gpus: Sequence[str]):
        self._waiting, self._logs, self._total = list(points), logs, len(points)
        self._slots = list(gpus[:jobs]) + [""] * (jobs - len(gpus[:jobs]))
        self._share = ["--cpu_devices=" + str(max(1, (os.cpu_count() or 1) // jobs))] if jobs > 1 else []
        self._running: dict[subprocess.Popen, tuple[Point, str, float]] = {}
        self._done = 0
        self.failures: list[Failure] = []
        self.signal: int | None = None

    def run(self) -> None:
        """Returns when all have ended."""
        self._logs.mkdir(parents=True, exist_ok=True)
        heard = [number for number in STOPS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, self._stop) for number in heard}
        announced = False
        try:
            while self._running or (self._waiting and self.signal is None):
                while self._waiting and self._slots and self.signal is None:
                    self._start(self._waiting.pop(0))
                if self.signal is not None and not announced:
                    announced = True
                    say(f"stopping: {len(self._running)} at work save and end; once more ends them at once")
                for process in [p for p in self._running if p.poll() is not None]:
                    self._end(process)
                time.sleep(POLL_SECONDS)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        if number == signal.SIGHUP and self.signal is not None:
            return  # a terminal that goes away sends several
        for process in self._running:
            process.terminate() if self.signal is None else process.kill()
        self.signal = number

    def _start(self, point: Point) -> None:
        slot = self._slots.pop(0)
        own = [] if any(part.startswith("--cpu_devices") for part in point.command) else self._share
        with (self._logs / f"{point.name}.txt").open("ab") as log:
            process = subprocess.Popen(
                [*point.command, *own],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1"} | ({"CUDA_VISIBLE_DEVICES": slot} if slot else {}),
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
            )
        self._running[process] = point, slot, time.monotonic()
        if self.signal is not None:  # it came in between
            process.terminate()

    def _end(self, process: subprocess.Popen) -> None:
        point, slot, begun = self._running.pop(process)
        self._slots.append(slot)
        self._done += 1
        seconds = time.monotonic() - begun
        if process.returncode == 0:
            summary = read_json(point.folder / "summary.json")
            name = f"test_{measures_in(read_json(point.folder / 'config.json'), '', []).metric}"
            value = number(summary.get(name))
            result = f"{in_words(name)} {readable_number(value)}" if math.isfinite(value) else "finished"
            result += ", diverged" if summary.get("diverged") else ""
        elif self.signal is not None:
            result = "stopped"
        else:
            failure = Failure(point.name, process.returncode, last_line(self._logs / f"{point.name}.txt"))
            self.failures.append(failure)
            result = f"failed with status {failure.status}: {failure.line}"
        say(f"[{self._done}/{self._total}] {point.name}: {result}, {seconds:.0f} s")


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


say = functools.partial(print, flush=True)


def write_array(out: Path, points: Sequence[Point], todo: Sequence[int], jobs: int | None, options: str) -> Path:
    """The Slurm script of the points numbered `todo`; the commands lie beside it, one a line."""
    (out / "logs").mkdir(parents=True, exist_ok=True)
    commands = "".join(shlex.join(point.command) + "\n" for point in points)
    (out / "points.txt").write_text(commands)
    script = out / "sweep.sh"
    own = "".join(f"#SBATCH {option}\n" for option in shlex.split(options))
    limit = f"%{jobs}" if jobs else ""
    script.write_text(f"""#!/usr/bin/env bash
# Written by fedjax8 sweep: a task for each unfinished point of the sweep, whose command is its line of points.txt.
#SBATCH --job-name=fedjax8-sweep
#SBATCH --array={",".join(map(str, todo))}{limit}
#SBATCH --output={(out / "logs").resolve()}/%a.txt
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
{own}set -u
cd {shlex.quote(os.getcwd())}
eval "srun --kill-on-bad-exit=1 $(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(out / "points.txt"))})"
status=$?
case "$status" in
    143) [ "${{SLURM_RESTART_COUNT:-0}}" -lt 20 ] && scontrol requeue "$SLURM_JOB_ID" ;; # out of time: it saved
esac
exit "$status"
""")
    return script


def submit(script: Path) -> None:
    """Hands the script to Slurm."""
    try:
        done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"no sbatch on this machine; {script} is written: sbatch {script} where Slurm is") from error
    if done.returncode:
        raise UserError(f"sbatch refused {script}: {done.stderr.strip()}")
    say(done.stdout.strip())


def print_table(points: Sequence[Point]) -> None:
    """The comparison of all runs that have logged a round; the first point of the grid is the reference."""
    folders = [p.folder for p in points if b"\n" in read_bytes(p.folder / "metrics.jsonl")]
    if not folders:
        return
    try:
        found = compare_runs(folders, margin=flags.FLAGS.margin)
    except UserError as error:
        say(f"no table: {error}")
        return
    print_comparison(found, sys.stdout)
    for name, made in ((flags.FLAGS.csv, as_csv), (flags.FLAGS.latex, as_latex)):
        if name:
            write_whole(cli.path_of(name), made(found).text.encode())
            say(f"wrote {name}")
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def read_bytes(path: Path) -> bytes:
    """A file's contents; empty if there is none."""
    return path.read_bytes() if path.exists() else b""


def main(argv: list[str]) -> int:
    """Runs the sweep; the exit status is 0 if every run has finished, 1 if one failed, 128 + n after signal n."""
    others = argv[1:]
    if not flags.FLAGS.out:
        raise UserError("no folder named: add --out=runs/NAME")
    for flag in others:
        if not flag.startswith("--") or (flag.startswith("--config.") and "=" not in flag):
            raise UserError(f"unexpected argument {flag!r}; flags are given as --NAME=VALUE, see the top of the file")
        if flag.split("=")[0] in ("--workdir", "--config.seed"):
            raise UserError(f"{flag}: a sweep sets that itself; use --out and --seeds")
    out, gpus = cli.path_of(flags.FLAGS.out), flags.FLAGS.gpus
    command = shlex.split(flags.FLAGS.command) if flags.FLAGS.command else [sys.executable, "-m", "fedjax8.train"]
    points = make_points(out, command, others)
    todo = [i for i, point in enumerate(points) if not is_finished(point)]
    say(f"{len(points)} runs in {out}: {len(points) - len(todo)} finished before, {len(todo)} to do")
    if flags.FLAGS.slurm and todo:
        script = write_array(out, points, todo, flags.FLAGS.jobs, flags.FLAGS.sbatch)
        submit(script) if flags.FLAGS.slurm == "submit" else say(f"wrote {script}: sbatch {script}")
        return 0
    runner = Runner([points[i] for i in todo], out / "logs", flags.FLAGS.jobs or len(gpus) or 1, gpus)
    runner.run()
    print_table(points)
    for failure in runner.failures:
        print(f"failed: {failure.name} (status {failure.status}): {failure.line}", file=sys.stderr)
    if runner.signal is not None:
        return 128 + runner.signal
    return 1 if runner.failures else 0


if __name__ == "__main__":
    define_flags()
    cli.run(main, lambda argv: flags.FLAGS(argv, known_only=True))
