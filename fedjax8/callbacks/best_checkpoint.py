"""The best global model so far by a metric, kept in `best.npz` of the run's folder.

File layout (NumPy's `.npz`): the leaves of `params`, `state` and `frozen` under their paths (`params/Dense_0/kernel`),
and under `about` a text in JSON: `round`, `metric`, `value`. It is replaced as a whole, and is on disk before the
checkpoint that remembers its value.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax8 import trees
from fedjax8.callbacks.base import Callback, Decision, Memory, Moment, watched
from fedjax8.directions import CLASSIFICATION, Measures
from fedjax8.durable import replace_file
from fedjax8.errors import UserError
from fedjax8.types import Variables

FILE = "best.npz"
ABOUT = "about"


def best_checkpoint(
    metric: str | None = None,
    *,
    direction: str = "auto",
    min_delta: float = 0.0,
    part: str = "test",
    measures: Measures = CLASSIFICATION,
) -> Callback:
    """A callback that writes the global model to `best.npz` whenever the metric is better than ever before.

    Args:
      metric, direction, min_delta, part, measures: as of `early_stopping`.

    `read_best` reads the file. Decides nothing. Metrics are seen in the rounds after which the global model or clients'
    own are evaluated, also those that every round logs.
    """
    watch = watched(metric, direction, part, min_delta, measures)

    def step(memory: Memory, moment: Moment) -> Decision:
        value = watch.read(moment, memory) if moment.model else None
        if value is None or moment.model is None:
            return Decision(memory)
        after = watch.noted(value, memory, moment.round)
        if after.get("round") == moment.round and moment.folder is not None:
            about = {"round": moment.round, "metric": watch.metric, "value": value}
            write_best(moment.folder / FILE, moment.model(), about)
        return Decision(after)

    return Callback(step, reads=(watch.metric,), writes=True)


def write_best(path: Path, variables: Variables, about: dict[str, Any]) -> None:
    """Writes a model so that the file is either the old one or the whole new one, on disk when this returns."""
    leaves = trees.named_leaves(jax.device_get(variables._asdict()))
    arrays: dict[str, Any] = {ABOUT: np.array(json.dumps(about))} | {n: np.asarray(x) for n, x in leaves.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    try:
        replace_file(path, content.getvalue())
    except OSError as error:
        raise UserError(
            f"--workdir: cannot write {path}: {error.strerror}; make room there, or see to its permissions, and the "
            "same command goes on from the last checkpoint"
        ) from error


def read_best(path: Path | str, like: Variables) -> tuple[Variables, dict[str, Any]]:
    """The model in a file of `best_checkpoint`, and its `round`, `metric` and `value`.

    `like` is a model of the same shapes, such as `simulation.variables(simulation.init())`. UserError if the file is
    damaged or of another model.
    """
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        about = json.loads(found.pop(ABOUT).item())
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a file of best_checkpoint: {error}") from error
    wanted = trees.named_leaves(like._asdict())
    other = [name for name in wanted | found if name not in found or name not in wanted]
    other += [name for name in wanted if name in found and found[name].shape != np.shape(wanted[name])]
    if other:
        raise UserError(f"{path} is of another model: {', '.join(other[:4])} differ")
    return Variables(**trees.map_named(lambda name, _: found[name], like._asdict())), about


EXAMPLES = ({}, {"metric": "test_loss"})
