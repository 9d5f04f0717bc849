"""Runs one federated experiment.

    python -m fedjax8.train [--config=FILE.py[:argument] | --config=RUN/config.json] [--config.FIELD=VALUE ...]
        [--workdir=DIR] [--data_dir=DIR]
        [--dry_run | --dry_run=fast] [--distributed | --coordinator=HOST:PORT --num_processes=N --process_id=I]

Without flags: FP8FedAvg-UQ on scikit-learn's handwritten digits, well under a minute. With --workdir the run
is written there and the same command goes on after an interruption. --dry_run forecasts bytes, memory and time, and
runs nothing. On several hosts every process gets the same command, with its own --process_id; see docs/scaling.md.

Examples:
  python -m fedjax8.train --workdir=runs/digits
  python -m fedjax8.train --config=configs/fashion_mnist_fp8.py --data_dir=DIR --config.rounds=30
  python -m fedjax8.train --config.uplink.name=none --config.client.optimizer.learning_rate=0.05
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from fedjax8 import cli, version
from fedjax8.compilation_cache import use_compilation_cache
from fedjax8.config import FIELDS, load_config, override, plain, validate
from fedjax8.data_flag import DATA_DIR, data_dir
from fedjax8.devices import check_jax, set_up_devices, start_devices
from fedjax8.distributed import Group, together
from fedjax8.errors import Mistakes, UserError
from fedjax8.introduction import introduction
from fedjax8.launch import own_models_of, run_of, schedule_of, versions
from fedjax8.overrides import split_overrides, unknown_flag

if TYPE_CHECKING:  # JAX must not start before the devices are set up
    from fedjax8.build import Experiment
    from fedjax8.running.recording import Run
    from fedjax8.running.runner import RunResult
    from fedjax8.running.schedule import Schedule

SIGNAL_STATUS = 128
"""A run stopped by signal n exits with 128 + n: 143 for SIGTERM, 130 for Ctrl-C."""

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Config file, FILE.py or FILE.py:argument, or config.json of a run; the default digits job if not given. Any field "
    "can be set with --config.FIELD=VALUE, a component's setting with --config.COMPONENT.SETTING=VALUE, and another "
    "component chosen with --config.COMPONENT.name=NAME. Fields:\n"
    + "\n".join(f"{name}: {field.help}" for name, field in FIELDS.items()),
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run: config.json, metrics.jsonl, checkpoints, summary.json. A run found there is resumed.",
)
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Start from the model of a run, runs/a or runs/a@ROUND, or of a safetensors file; short for --config.init_from.",
)
_SEEDS = flags.DEFINE_list(
    "seeds",
    None,
    "Several seeds, such as 0,1,2,3: a run for each, all at once, shared out over the devices. Run s is written to "
    "WORKDIR/seed-s.",
)
_AUTOTUNE = flags.DEFINE_bool(
    "autotune",
    False,
    "Measure first, for about as long as it takes to compile the run a few times, how many clients at once and how "
    "many devices are fastest; remembered for the next run like it. To set them yourself: --config.executor.chunk=N "
    "--config.executor.num_devices=N.",
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "Directory for a JAX profile of a few calls of rounds, to be opened with TensorBoard or Perfetto."
)
_DRY_RUN = flags.DEFINE_enum(
    "dry_run",
    None,
    ["measured", "fast"],
    "Write nothing, and print the model's arrays, bytes, local steps, memory, time and simulated time. --dry_run alone "
    "compiles the run and measures a few rounds; --dry_run=fast does neither and only estimates.",
)
_WRITERS = flags.DEFINE_list(
    "writers",
    [],
    "Writers besides metrics.jsonl: tensorboard, wandb, or package.module:factory; several with commas. Needs "
    "--workdir.",
)
_CLIENT_ACCURACY = flags.DEFINE_integer(
    "client_accuracy",
    0,
    "At the end, the accuracy of each of up to so many clients' own models on its own held-out rows, in clients.json; "
    "also written where --config.evaluate_clients.every is set. Needs --workdir.",
    lower_bound=0,
)
_NAME = flags.DEFINE_string("name", None, "Name of the run in comparisons, kept in its config.json.")
_TAG = flags.DEFINE_list("tag", [], "Tags of the run, such as paper,fp8, by which comparisons are filtered.")
_NOTE = flags.DEFINE_string("note", None, "A sentence about the run, kept in its config.json.")
_DATA_DIR = DATA_DIR
_CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices",
    None,
    "Devices to make of the CPU; default one per core. No effect on accelerators.",
    lower_bound=1,
    upper_bound=1024,
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder of compiled programs, which the next run with the same shapes takes from there, or off; default "
    "$FEDJAX8_CACHE, $XDG_CACHE_HOME/fedjax8 or ~/.cache/fedjax8, of at most 1 GiB, unless JAX has a cache of its own "
    "(JAX_COMPILATION_CACHE_DIR).",
)
flags.DEFINE_string(
    "list",
    None,
    "A kind of components, such as codecs, or one component: lists them with their settings and defaults, and runs "
    "nothing; --help=NAME does too. `fedjax8 list` names the kinds.",
)
flags.DEFINE_bool("version", False, "Print the version, and run nothing.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where the processes of a run on several hosts find each other."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, all hosts together.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Run with the other processes of this Slurm, Open MPI, TPU pod or Kubernetes job."
)
_CONNECT_SECONDS = flags.DEFINE_integer(
    "connect_seconds",
    300,
    "How long the processes wait for each other at the start.",
    lower_bound=1,
    upper_bound=1_000_000,
)


def main(argv: list[str]) -> int:
    """The exit status of the run that the flags describe.

    `argv` is the rest that `parse_flags` left, or a whole command line: `main(["train", "--config.rounds=5"])`, also
    several times in a process.
    """
    rest, pairs = split_overrides(argv)
    if any(argument.startswith("-") for argument in rest[1:]) or not flags.FLAGS.is_parsed():
        try:
            rest, pairs = split_overrides(parse_flags(argv))
        except flags.Error as error:
            raise UserError(" ".join(str(error).split())) from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --, see --help")
    config = load_config(_CONFIG.value)
    pairs += [("init_from", _INIT_FROM.value)] if _INIT_FROM.value else []
    check(config, pairs)
    group = Group(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _DISTRIBUTED.value, _CONNECT_SECONDS.value
    )
    check_jax()
    use_compilation_cache(_COMPILATION_CACHE.value)
    set_up_devices(_CPU_DEVICES.value, -(-config.cohort_size // (group.num_processes or 1)))
    with together(group):
        start_devices()
        return train(config)


def check(config: ConfigDict, pairs: Sequence[tuple[str, str]]) -> None:
    """Applies overrides to the config. Raises UserError, naming all mistakes, before JAX starts if one is found without
    it."""
    with Mistakes() as mistakes:
        mistakes.attempt(override, config, pairs)
        mistakes.attempt(validate, config)
        if mistakes.found:
            from fedjax8.build import build

            set_up_devices(_CPU_DEVICES.value)
            started = mistakes.attempt(start_devices)
            mistakes.attempt(lambda _: build(config, data_dir()), started)


def check_flags(processes: int) -> None:
    """Raises UserError naming all flags which do not go together."""
    with Mistakes() as mistakes:
        if _AUTOTUNE.value and processes > 1:
            mistakes.note(UserError("--autotune measures on one host; set --config.executor.chunk=N on several"))
        if _SEEDS.value and processes > 1:
            mistakes.note(
                UserError("--seeds shares out one host's devices; start the runs one by one on several hosts")
            )
        if _DRY_RUN.value and (_SEEDS.value or _AUTOTUNE.value or _PROFILE.value or processes > 1):
            mistakes.note(
                UserError(
                    "--dry_run is of one run on one host; leave out --seeds, --autotune, --profile and --distributed"
                )
            )
        needing = (
            ("writers", _WRITERS.value),
            ("client_accuracy", _CLIENT_ACCURACY.value),
            ("name", _NAME.value),
            ("tag", _TAG.value),
            ("note", _NOTE.value),
        )
        for flag, given in needing:
            if given and not _WORKDIR.value:
                mistakes.note(UserError(f"--{flag} needs a --workdir to write to"))


def train(config: ConfigDict) -> int:
    """Builds and runs an experiment, or one for each seed, on the devices that are set up; returns the exit status."""
    import jax

    from fedjax8.build import build, build_seeds
    from fedjax8.data.digest import without_floats
    from fedjax8.engine.side_by_side import side_by_side
    from fedjax8.hosts import hosts
    from fedjax8.running.labels import labels
    from fedjax8.running.runner import run_all, run_one
    from fedjax8.running.writers import find_writers
    from fedjax8.tune import tuned

    check_flags(jax.process_count())
    models_of = functools.partial(own_models_of, most=_CLIENT_ACCURACY.value)
    writers = find_writers(_WRITERS.value)
    if _AUTOTUNE.value:
        config.executor = tuned(config, data_dir())
    schedule = schedule_of(config)
    if _DRY_RUN.value:
        experiment = build(config, data_dir())
        models_of(experiment)  # refuses what a run would
        dry_run(experiment, schedule)
        return 0
    workdir = cli.path_of(_WORKDIR.value) if _WORKDIR.value else None
    profile = cli.path_of(_PROFILE.value) if _PROFILE.value else None
    given = labels(_NAME.value, _TAG.value, _NOTE.value)
    if not _SEEDS.value:
        experiment = build(config, data_dir())
        workdirs, clients = [workdir], [models_of(experiment)]
        only = run_of(experiment, workdir, writers=writers, own=clients[0], labels=given)
        assert only.record is not None
        hosts().check_same("settings", plain(config))
        hosts().check_same("versions of packages", versions())
        hosts().check_same("data", without_floats(only.record["data"]))
        introduce = functools.partial(introduction, experiment)
        outcomes = [run_one(only, experiment.dataset.test, schedule, introduce, profile)]
    else:
        experiments = build_seeds(config, seeds_of(_SEEDS.value), data_dir())
        workdirs = [workdir and workdir / f"seed-{e.config.seed}" for e in experiments]
        clients = [models_of(e) for e in experiments]
        runs = [
            run_of(e, folder, f"seed {e.config.seed}", writers, own, labels=given)
            for e, folder, own in zip(experiments, workdirs, clients, strict=True)
        ]
        advance = functools.partial(side_by_side([run.simulation for run in runs]), donate=True)
        introduce = functools.partial(introduction, experiments[0], runs=len(runs))
        outcomes = run_all(runs, advance, experiments[0].dataset.test, schedule, introduce, profile)
        if len(runs) > 1:
            tell_over_seeds([e.config.seed for e in experiments], runs, outcomes, workdir)
    for own, outcome, folder in zip(clients, outcomes, workdirs, strict=True):
        if own and folder and outcome.summary["finished"]:
            own.write(outcome.state, folder)
    outcome = outcomes[0]
    return 0 if outcome.signal_number is None else SIGNAL_STATUS + outcome.signal_number


def tell_over_seeds(
    seeds: Sequence[int], runs: "Sequence[Run]", outcomes: "Sequence[RunResult]", workdir: Path | None
) -> None:
    """Prints means and deviations over seeds, and writes them beside the folders of the runs."""
    from fedjax8.results.record import measures_in
    from fedjax8.results.runs import SEEDS
    from fedjax8.running.seeds import over_seeds, seeds_in_words
    from fedjax8.running.workdir import write_json
    from fedjax8.streams import console_on

    found = over_seeds(seeds, [outcome.summary for outcome in outcomes])
    if workdir:
        write_json(workdir / SEEDS, found)
    metric = measures_in(runs[0].record or {}, "", []).metric
    console_on().print(f"\n{seeds_in_words(found, metric)}", soft_wrap=True, markup=False)


def dry_run(experiment: "Experiment", schedule: "Schedule") -> None:
    """Prints the forecast of an experiment."""
    from fedjax8.running.forecast import forecast
    from fedjax8.running.forecast_tables import show

    simulation = experiment.simulation
    found = forecast(
        simulation,
        schedule,
        experiment.dataset.test,
        measured=_DRY_RUN.value == "measured",
    )
    show(found, introduction(experiment, simulation.init()))


def seeds_of(texts: Sequence[str]) -> list[int]:
    """The seeds that a flag lists; UserError for anything else."""
    for text in texts:
        if not text.strip().isdecimal():
            raise UserError(f"--seeds: {text!r} is not a seed; give whole numbers from 0, such as --seeds=0,1,2")
    return [int(text) for text in texts]


OURS = (
    *(holder.name for holder in list(globals().values()) if isinstance(holder, flags.FlagHolder)),
    "list",
    "version",
)
"""Names of this program's flags."""


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl's flags, those of an earlier call forgotten; `--dry_run` needs no value.

    `--config.` overrides are left in argv for `main`. Raises UserError for an unknown flag, with the one that is meant:
    `--rounds=3` is --config.rounds=3. Where something is to be listed, prints that and exits.
    """
    rest, pairs = split_overrides(argv)
    for name in OURS:
        flags.FLAGS[name].unparse()
    rest = ["--dry_run=measured" if argument in ("--dry_run", "-dry_run") else argument for argument in rest]
    rest = [re.sub(r"^--?help=", "--list=", argument) for argument in rest]
    try:
        rest = flags.FLAGS(rest)
    except flags.UnrecognizedFlagError as error:
        given = next((text for text in rest if text.lstrip("-").partition("=")[0] == error.flagname), error.flagname)
        raise UserError(unknown_flag(error.flagname, given.partition("=")[2], OURS)) from error
    if flags.FLAGS.version:
        print(version.__version__)
        raise SystemExit(0)
    if flags.FLAGS.list is not None:
        from fedjax8.listing import listing

        print(listing(flags.FLAGS.list))
        raise SystemExit(0)
    return rest + [f"--config.{path}={text}" for path, text in pairs]


if __name__ == "__main__":
    cli.run(main, parse_flags)
