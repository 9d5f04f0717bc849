"""A config to a run with files, as `train` starts it and `load` goes on with it: record, schedule, `Run`."""

import datetime
import functools
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from fedjax8 import version
from fedjax8.components import resolved
from fedjax8.config import plain

if TYPE_CHECKING:
    import numpy as np

    from fedjax8.build import Experiment
    from fedjax8.running.client_accuracy import OwnModels
    from fedjax8.running.recording import Run
    from fedjax8.running.schedule import Schedule
    from fedjax8.running.writers import Writer
    from fedjax8.tasks import Task
    from fedjax8.types import Model

GIT_SECONDS = 5
"""Longest wait for git; without an answer no commit is noted."""


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide a result."""
    import importlib.metadata

    packages = ("jax", "jaxlib", "flax", "optax", "ml_dtypes", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"fedjax8": version.__version__, "python": sys.version.split()[0], **found}


def machine() -> str:
    """The processor, whose vector units decide the last bits of float sums: `x86_64 Intel(R) Xeon(R) ...`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {models[0] if models else platform.processor()}".strip()


@functools.cache
def commit() -> str:
    """The git commit of this package's code, `-dirty` behind it where files differ from it; empty for an installed
    package, or where git gives none."""
    folder = Path(__file__).resolve().parent
    if "site-packages" in folder.parts or not any((place / ".git").exists() for place in folder.parents):
        return ""
    asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def record(config: ConfigDict, data: Mapping[str, str], task: "Task", command: str = "") -> dict[str, Any]:
    """The content of `config.json`; `data` is the digest of the data, `task` names the metrics, `command` is the
    command line if it is not the process's."""
    import jax

    return {
        "config": plain(config),
        "resolved": resolved(config),
        "versions": versions(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
        "machine": machine(),
        "data": dict(data),
        "task": {"name": task.name, "metric": task.main, "directions": task.directions},
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "host": socket.gethostname(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def program_digest(model: "Model", columns: "Mapping[str, np.ndarray]") -> str:
    """`program 1f0c...`: a hash of a model's initialization, forward pass, loss and metrics on rows like those of the
    columns `[N, ...]`, as they are traced. Of a model given from Python it is the identity, since its config has none;
    equal programs have it in common under the same versions alone."""
    import hashlib
    import re

    import jax
    import numpy as np

    from fedjax8.data.digest import array_digest
    from fedjax8.keys import random_key

    rows = {name: np.zeros((1, *column.shape[1:]), column.dtype) for name, column in columns.items()}
    batch = rows | {"mask": np.ones(1, np.float32)}

    def program(key, batch):
        variables = model.init(key, batch)
        outputs, _ = model.apply(variables, batch)
        states = {name: metric.state(outputs, batch["y"], batch["mask"]) for name, metric in model.sets.items()}
        return variables, outputs, model.loss(outputs, batch), model.metrics(outputs, batch), states

    traced = jax.make_jaxpr(program)(random_key(0), batch)
    text = re.sub(r"0x[0-9a-f]+", "", str(traced))  # addresses of functions
    parts = [text, *(array_digest(np.asarray(value)) for value in traced.consts)]
    return f"program {hashlib.blake2b(chr(10).join(parts).encode(), digest_size=8).hexdigest()}"


def schedule_of(config: ConfigDict) -> "Schedule":
    """End, evaluations and checkpoints of a run."""
    from fedjax8.running.schedule import Schedule

    return Schedule(
        config.rounds,
        config.eval_every,
        config.checkpoint_every,
        config.on_nan,
        config.evaluate_clients.every,
        config.checkpoint_seconds,
    )


def own_models_of(experiment: "Experiment", most: int = 0) -> "OwnModels | None":
    """The evaluations of clients' own models that a config asks for, or that of `most` clients at the end."""
    from fedjax8.build import split_seed_of
    from fedjax8.directions import HIGHER
    from fedjax8.running.client_accuracy import own_models

    task, settings = experiment.task, experiment.config.evaluate_clients
    higher = task.directions[task.of_clients] == HIGHER
    seed = split_seed_of(experiment.config)
    return own_models(experiment.simulation, experiment.dataset, settings, most, seed, task.of_clients, higher)


def run_of(
    experiment: "Experiment",
    workdir: Path | None = None,
    label: str = "",
    writers: "Mapping[str, Writer] | None" = None,
    own: "OwnModels | None" = None,
    command: str = "",
    labels: Mapping[str, Any] | None = None,
) -> "Run":
    """The run of an experiment.

    Args:
      experiment: the objects of its config.
      workdir: its folder; None for a run without files.
      label: its label in printed lines, where there are several.
      writers: writers of its metrics besides `metrics.jsonl`.
      own: evaluations of clients' own models.
      command: the command line to be noted, if it is not the process's own.
      labels: a person's labels of it, beside those that its folder has.
    """
    from fedjax8.data.digest import digest
    from fedjax8.running.about import about
    from fedjax8.running.client_accuracy import line_of
    from fedjax8.running.identity import fixed_fields
    from fedjax8.running.labels import labeled
    from fedjax8.running.recording import Run

    simulation = experiment.simulation
    data = digest(experiment.dataset, simulation.data)
    data |= {"init_from": experiment.start.digest()} if experiment.start else {}
    if {"model", "task"} & set(experiment.objects):
        data |= {"model": program_digest(simulation.model, simulation.data.columns)}
    return Run(
        simulation,
        workdir,
        labeled(record(experiment.config, data, experiment.task, command), labels or {}, workdir),
        label,
        functools.partial(about, simulation, experiment.dataset.num_classes, private=experiment.private),
        writers or {},
        experiment.validation,
        experiment.callbacks,
        line_of(own),
        fixed_fields(bool(experiment.callbacks), experiment.calibrated),
    )
