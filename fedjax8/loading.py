"""Runs read back from their folders: models, metrics, evaluations, more rounds.

    run = fedjax8.load("runs/a")
    run                               run runs/a: fedavg on digits, 60 rounds, finished, test accuracy 0.9611, ...
    run.evaluate()                    the metrics of its last model on its test rows
    run.table()                       its metrics, a pandas DataFrame
    run.go_on(rounds=120)             as `train --workdir=runs/a --config.rounds=120`

Everything is read when it is first asked for: metrics and summary from their files, without JAX; the model from a
checkpoint, by the objects that the config describes, for which the data must be there.
"""

import functools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from fedjax8.cli import path_of
from fedjax8.config import load_config
from fedjax8.display import as_html
from fedjax8.errors import UserError
from fedjax8.given import read_object
from fedjax8.lookup import optional
from fedjax8.results.log import read_lines
from fedjax8.results.runs import RunFolder, read_run

if TYPE_CHECKING:
    import pandas

    from fedjax8.build import Experiment
    from fedjax8.engine.simulation import Simulation
    from fedjax8.engine.state import SimulationState
    from fedjax8.types import Model, Variables

ROWS_AT_ONCE = 250
"""Rows of one forward pass of `predict`."""


def load(path: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> "LoadedRun":
    """The run in a folder.

    Args:
      path: the `--workdir` of a run, or `WORKDIR/seed-N` of one of several.
      data_dir: the folder of data sets; else `$FEDJAX8_DATA`.

    Raises:
      UserError: there is no run. What else may be wrong with it is said when it is needed.
    """
    folder = path_of(path)
    if not (folder / "config.json").is_file():
        inner = sorted(found.parent.name for found in folder.glob("*/config.json"))
        hint = f"its folders {', '.join(inner[:4])} do: give one of them" if inner else "give the --workdir of a run"
        raise UserError(f"{str(folder)!r} holds no config.json; {hint}")
    return LoadedRun(folder, None if data_dir is None else str(path_of(data_dir)))


class LoadedRun:
    """A run in a folder; made by `load`. Nothing in the folder is changed but by `go_on`."""

    def __init__(self, path: Path, data_dir: str | None = None, experiment: "Experiment | None" = None):
        """`experiment`: its objects, if they are made already."""
        if experiment is not None:
            self.__dict__["experiment"] = experiment
        self.path = path
        """Its folder."""
        self.data_dir = data_dir
        """Where data sets lie; None for `$FEDJAX8_DATA`."""
        self._state: SimulationState | None = None
        self._objects = {} if experiment is None else experiment.objects
        self._before: LoadedRun | None = None
        """The run that this one went on from, whose folder goes when it does if it is a temporary one."""

    # Read from files

    @functools.cached_property
    def config(self) -> ConfigDict:
        """Its settings, as its command gave them."""
        return load_config(str(self.path / "config.json"))

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """The content of `config.json`: `resolved` (settings with all defaults), `parts`, versions, devices."""
        found = read_object(self.path / "config.json")
        if found is None:
            raise UserError(f"{self.path / 'config.json'} is damaged: no JSON object can be read from it")
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings, with those that were left to their defaults; only those given in runs of version 0.2."""
        return self.record.get("resolved", self.record.get("config", {}))

    @property
    def about(self) -> Mapping[str, Any]:
        """The split over clients and the bytes of messages: the content of `about.json`."""
        return self._folder.about

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A dict for each logged round, a line of `metrics.jsonl`; None where a number was not finite."""
        return read_lines(self.path, [])

    def table(self) -> "pandas.DataFrame":
        """`metrics` as a DataFrame, indexed by round; UserError without pandas."""
        pandas = optional("pandas", "a table (run.metrics has the same as dicts)", "table")
        return pandas.DataFrame(self.metrics).set_index("round")

    @property
    def summary(self) -> Mapping[str, Any]:
        """The content of `summary.json`; empty for a run that has not ended since it began, or went on."""
        return self._folder.summary

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rounds of which there is a checkpoint, the last two that were saved."""
        from fedjax8.running.reading import saved_rounds

        return tuple(saved_rounds(self.path))

    # The model

    @functools.cached_property
    def experiment(self) -> "Experiment":
        """The objects of its config.

        Warns of other versions; UserError if the data are not those that it was run on.
        """
        from fedjax8.build import build
        from fedjax8.launch import run_of
        from fedjax8.running.identity import differences, other_data

        self._check_files()

        made = build(self.config, self.data_dir)
        now = dict(run_of(made).record or {})
        if changed := other_data(self.record, now):
            raise UserError(
                f"{self.path} was run on other data ({'; '.join(changed)}); give the data_dir that it was run with"
            )
        if changed := differences(self.record.get("versions", {}), now["versions"]):
            warnings.warn(
                f"{self.path} was run by other versions ({'; '.join(changed)}): numbers may differ in their last bits",
                stacklevel=2,
            )
        return made

    @property
    def simulation(self) -> "Simulation":
        """The run as functions of its state."""
        return self.experiment.simulation

    @property
    def model(self) -> "Model":
        """Its model, as pure functions of `variables`."""
        return self.simulation.model

    def state(self, round: int | None = None) -> "SimulationState":
        """The state after a round that has a checkpoint, by default the last; UserError for another round."""
        from fedjax8.running.reading import read_state

        there = self.rounds
        if not there:
            raise UserError(f"{self.path} has no checkpoint yet: go on with the run, or load it later")
        number = there[-1] if round is None else round
        if number not in there:
            raise UserError(
                f"{self.path} has no checkpoint of round {number}, but of {', '.join(map(str, there))}; the last two "
                "are kept"
            )
        if self._state is None or self._state.round != number:
            self._state = read_state(self.path, self.simulation, number)
        return self._state

    def variables(self, round: int | None = None, client: int | None = None) -> "Variables":
        """The global model after a round, by default the last that was saved, or the model of a client's own."""
        state = self.state(round)
        return self.simulation.variables(state) if client is None else self._own(state, client)

    def fine_tune(self, client: int, steps: int, round: int | None = None) -> "Variables":
        """A client's own model after so many more local steps on its training rows, at the rate of the last round.

        The same as `Simulation.evaluate_clients(fine_tune_steps=steps)` evaluates. UserError where an epsilon is
        stated, of which the steps would be no part, or where the client has no rows.
        """
        import jax
        import jax.numpy as jnp

        from fedjax8.engine.client_evaluation import check_fine_tuning
        from fedjax8.keys import random_key
        from fedjax8.types import ClientRows, Pool

        simulation, state = self.simulation, self.state(round)
        if steps < 1:
            raise UserError(f"fine_tune: steps is {steps}, but must be at least 1")
        check_fine_tuning(simulation.algorithm, steps)
        own = self._own(state, client)
        rows = simulation.data.rows(client)
        if not len(rows):
            raise UserError(f"client {client} has no rows to be fine-tuned on")
        local, scale = simulation.algorithm.local, 1.0 if state.step_scale is None else state.step_scale
        columns = {name: np.asarray(column[rows]) for name, column in simulation.data.columns.items()}
        last = max(state.round - 1, 0)

        @jax.jit
        def tuned(variables, columns, frozen, key):
            pool = Pool(columns, None, frozen, jnp.int32(last), jnp.float32(scale))
            rows_of_client = ClientRows(pool, jnp.int32(0), jnp.int32(len(rows)))
            training = local.start(variables, rows_of_client)
            return local.advance(training, rows_of_client, key, 0, steps).variables

        key = jax.random.fold_in(jax.random.fold_in(random_key(simulation.seed), 2), client)
        return tuned(own._replace(frozen={}), columns, own.frozen, key)._replace(frozen=own.frozen)

    def _own(self, state: "SimulationState", client: int) -> "Variables":
        """The model that a client would use."""
        import jax

        simulation = self.simulation
        if not 0 <= client < simulation.num_clients:
            raise UserError(f"there is no client {client}; there are {simulation.num_clients}, numbered from 0")
        memory = jax.tree.map(lambda x: x[0], state.clients.read(np.array([client], np.int32)))["algorithm"]
        server = jax.device_get(state.server)
        own = simulation.algorithm.variables_of(server, memory)
        return own._replace(frozen=simulation.variables(state).frozen)

    # Its use

    def evaluate(
        self,
        columns: Mapping[str, np.ndarray] | None = None,
        *,
        round: int | None = None,
        variables: "Variables | None" = None,
    ) -> dict[str, float]:
        """Metrics by name, `test_accuracy` and the like, of every view of the model. What the model reports of itself,
        such as clips, is none: it is in `metrics`, and in `variables`.

        Args:
          columns: rows to evaluate on, `{"x": [N, ...], "y": [N, ...]}` as the model was trained on; by default the
            test rows.
          round: of the model, by default the last that was saved.
          variables: a model to evaluate in place of the global one, such as that of `fine_tune`.
        """
        from fedjax8.running.recording import is_evaluated

        rows = self.experiment.dataset.test if columns is None else columns
        model = self.variables(round) if variables is None else variables
        found = self.simulation.programs.evaluated.evaluate(rows, model)
        return {name: value for name, value in found.items() if is_evaluated(name)}

    def predict(self, x: np.ndarray, *, round: int | None = None, variables: "Variables | None" = None) -> np.ndarray:
        """Outputs `[N, ...]` of the model, such as logits, for inputs `[N, ...]` as it was trained on."""
        import jax
        import jax.numpy as jnp

        model = self.variables(round) if variables is None else variables
        x = np.asarray(x)
        self._check_inputs(x)
        size = min(ROWS_AT_ONCE, len(x))
        apply = jax.jit(lambda variables, x: self.model.apply(variables, {"x": x, "mask": jnp.ones(size)})[0])
        found = []
        for first in range(0, len(x), size):
            block = x[first : first + size]
            padded = np.concatenate([block, np.repeat(block[:1], size - len(block), axis=0)])
            found.append(np.asarray(apply(model, padded))[: len(block)])
        return np.concatenate(found)

    def _check_files(self) -> None:
        """UserError for a run with objects that no file holds, and this object neither."""
        from fedjax8.components import GIVEN

        parts = [part for part in ("data", "model", "task") if self.config[part].get("name") == GIVEN]
        if missing := [part for part in parts if part not in self._objects]:
            raise UserError(
                f"{self.path} was run with {' and '.join(missing)} given from Python, which no file holds; its metrics "
                "can be read, and for its model the same fedjax8.experiment(..., workdir=...) returns at once"
            )

    def plot(self, x: str = "bytes", y: str | None = None, **settings: Any) -> Any:
        """The picture of a metric, by default the task's main one, against `bytes`, `rounds` or `seconds`; see
        `results.plot_runs`."""
        from fedjax8.results.figures import plot_runs

        return plot_runs([self.path], x, y=y, **settings)

    def __fspath__(self) -> str:
        return str(self.path)

    def _check_inputs(self, x: np.ndarray) -> None:
        """UserError unless `x` has rows like those that the model was trained on."""
        import jax

        trained = self.simulation.data.columns["x"]
        alike = x.shape[1:] == trained.shape[1:]
        if (
            not len(x)
            or not alike
            or jax.dtypes.canonicalize_dtype(x.dtype) != jax.dtypes.canonicalize_dtype(trained.dtype)
        ):
            raise UserError(
                f"predict: x is {x.dtype} {x.shape}, but must be {trained.dtype} with at least one row of shape "
                f"{trained.shape[1:]}, as in training"
            )

    def export(
        self, path: str | os.PathLike, *, round: int | None = None, variables: "Variables | None" = None
    ) -> Path:
        """Writes a model as a safetensors file, as a finished run's `model.safetensors`; its path."""
        from fedjax8.models.saved import save_model

        model = self.variables(round) if variables is None else variables
        done = {} if variables is not None else {"round": str(self.rounds[-1] if round is None else round)}
        save_model(path_of(path), model, done)
        return path_of(path)

    def go_on(self, rounds: int, *, quiet: bool = False) -> "LoadedRun":
        """The run after `rounds` rounds in all, which are run in its folder as by `train --config.rounds=`: the same
        bits on the same devices. With `quiet` nothing is printed.

        UserError where it cannot go on so, such as for fewer rounds than are done, or noise that is calibrated for
        their number. Evaluations of clients' own models, where the config asks for them, go on too.
        """
        from fedjax8.build import build
        from fedjax8.introduction import introduction
        from fedjax8.launch import own_models_of, run_of, schedule_of
        from fedjax8.running.runner import run_one

        self._check_files()
        config = ConfigDict(self.config, convert_dict=False)
        config.rounds = rounds
        experiment = build(config, self.data_dir, objects=self._objects)
        own = own_models_of(experiment)
        run = run_of(experiment, self.path, own=own, command=f"load({str(self.path)!r}).go_on({rounds})")
        introduce = functools.partial(introduction, experiment)
        outcome = run_one(run, experiment.dataset.test, schedule_of(config), introduce, quiet=quiet)
        if own and outcome.summary["finished"]:
            own.write(outcome.state, self.path)
        longer = LoadedRun(self.path, self.data_dir, experiment)
        longer._before = self
        return longer

    @functools.cached_property
    def _folder(self) -> RunFolder:
        return read_run(self.path)

    def _repr_html_(self) -> str:
        try:
            known = {name: v for name, v in self.summary.items() if v is None or isinstance(v, str | int | float)}
        except UserError:
            known = {}  # the line below says what is wrong
        facts = {n: f"{v:.4g}" if isinstance(v, float) else "not finite" if v is None else v for n, v in known.items()}
        return as_html(f"run {self.path}", facts or {"": repr(self)})

    def __repr__(self) -> str:
        try:
            return self._in_a_line()
        except UserError as error:
            return f"<run {self.path}: {error}>"

    def _in_a_line(self) -> str:
        """The text of `repr`; UserError where its files cannot be read."""
        from fedjax8.running.console import readable_bytes

        settings = self.record.get("config", {})
        named = " on ".join(
            str(settings[part]["name"]) for part in ("algorithm", "data") if isinstance(settings.get(part), dict)
        )
        begun = (self.path / "metrics.jsonl").is_file() and (self.path / "metrics.jsonl").stat().st_size
        if not begun:
            return f"<run {self.path}: {named}, no round logged yet>"
        folder, summary = self._folder, self.summary
        words = [named, f"{int(folder.rounds[-1])} rounds", "finished" if summary.get("finished") else "unfinished"]
        main = self.record.get("task", {}).get("metric", "accuracy")
        for name in (f"test_{main}", "test_loss"):
            if (last := folder.last(name)) is not None:
                words.append(f"{name.replace('_', ' ')} {f'{last:.4f}' if np.isfinite(last) else 'not finite'}")
        ways = {"up": folder.uplink_bytes, "down": folder.downlink_bytes, **folder.other_bytes}
        words.append(", ".join(f"{readable_bytes(n[-1])} {way.removesuffix('_bytes')}" for way, n in ways.items()))
        there = f"checkpoints of rounds {', '.join(map(str, self.rounds))}" if self.rounds else "no checkpoint"
        return f"<run {self.path}: {', '.join(words)}; {there}>"
