"""A run in one call: the same as by its command, with objects in place of components, and mistakes named together."""

import json

import numpy as np
import pytest
from flax import linen as nn

import fedjax8
from fedjax8 import data, models, tasks, train
from fedjax8.errors import UserError, UserErrors
from fedjax8.experimenting import config_of
from fedjax8.running.notebook_bar import NotebookBar, in_notebook

SMALL = {"rounds": 2, "num_clients": 5, "cohort_size": 3, "partition": "iid", "quiet": True, "eval_every": 1}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def run():
    model = {"name": "mlp", "hidden": (4,)}
    return fedjax8.experiment("digits", model, client={"epochs": 1, "batch_size": 16}, uplink="fp8", **SMALL)


def without_seconds(lines):
    return [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in lines]


def test_it_is_the_run_of_the_command_with_the_same_fields(run, tmp_path):
    flags = ["--config.rounds=2", "--config.num_clients=5", "--config.cohort_size=3", "--config.partition.name=iid"]
    flags += ["--config.eval_every=1", "--config.model.hidden=(4,)", "--config.client.epochs=1"]
    flags += ["--config.client.batch_size=16", f"--workdir={tmp_path / 'run'}"]
    assert train.main(["train", *flags]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert without_seconds(run.metrics) == without_seconds(lines) and len(lines) == 2


def test_its_pieces_are_visible(run):
    assert run.experiment.simulation.num_clients == 5
    assert run.evaluate()["test_accuracy"] == run.metrics[-1]["test_accuracy"]
    assert "2 rounds" in repr(run) and run._repr_html_().startswith("<table>")


def test_it_draws_a_picture_that_a_notebook_shows(run):
    pytest.importorskip("matplotlib")
    axes = run.plot()
    assert axes._repr_png_().startswith(b"\x89PNG") and "accuracy" in axes.get_ylabel()


def test_arrays_and_a_flax_module_are_taken_as_they_are():
    found = fedjax8.experiment((X, X @ np.ones(4)), nn.Dense(1), task="regression", **SMALL)
    assert "test_mae" in found.metrics[-1] and found.record["task"]["metric"] == "mae"
    assert found.experiment.dataset.train["x"].shape == (48, 4)
    with pytest.raises(UserError, match="data and model given from Python"):
        _ = fedjax8.load(found.path).experiment


def test_metrics_are_given_by_name_or_with_settings():
    given = {"name": "classification", "metrics": ["accuracy", {"name": "top_k", "k": 3}]}
    metrics = config_of(None, {"task": given}).task.metrics
    assert [dict(metric) for metric in metrics] == [{"name": "accuracy"}, {"name": "top_k", "k": 3}]
    (metric,) = config_of(None, {"task": {"name": "regression", "metrics": "mae"}}).task.metrics
    assert dict(metric) == {"name": "mae"}


def test_a_data_set_and_a_model_are_taken_as_they_are(tmp_path):
    dataset = data.from_arrays(X, (X[:, 0] > 0).astype(int), X[:9], (X[:9, 0] > 0).astype(int))
    model = models.from_linen(nn.Dense(2))
    first = fedjax8.experiment(dataset, model, workdir=tmp_path / "run", **SMALL)
    again = fedjax8.experiment(dataset, model, workdir=tmp_path / "run", **SMALL)
    assert again.metrics == first.metrics
    assert again.evaluate() == first.evaluate()


class Scaled(nn.Module):
    """A model whose settings change its function and no shape."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        return self.scale * nn.Dense(2)(x)


def test_a_folder_of_another_model_of_the_same_shapes_is_refused(tmp_path):
    rows = (X, (X[:, 0] > 0).astype(int))
    fedjax8.experiment(rows, Scaled(), workdir=tmp_path / "run", **SMALL)
    assert fedjax8.experiment(rows, Scaled(), workdir=tmp_path / "run", **SMALL).summary["finished"]
    for other in (Scaled(5.0), nn.Dense(2, kernel_init=nn.initializers.zeros), nn.Dense(3)):
        with pytest.raises(UserError, match=r"holds a run on other data \(model: program "):
            fedjax8.experiment(rows, other, workdir=tmp_path / "run", **SMALL)


def test_a_run_on_objects_goes_on_with_them_and_its_temporary_folder_stays():
    run = fedjax8.experiment((X, (X[:, 0] > 0).astype(int)), nn.Dense(2), **SMALL)
    whole = fedjax8.experiment((X, (X[:, 0] > 0).astype(int)), nn.Dense(2), **{**SMALL, "rounds": 3})
    folder, run = run.path, run.go_on(3, quiet=True)
    assert folder.is_dir() and without_seconds(run.metrics) == without_seconds(whole.metrics)
    assert run.evaluate() == whole.evaluate()
    with pytest.raises(UserErrors, match=r"(?s)config.data was an object given from Python, .*config.model was an obj"):
        fedjax8.experiment(config=str(folder / "config.json"))
    del run
    assert not folder.exists()


def test_tasks_and_metrics_are_taken_as_they_are():
    near = tasks.Metric("near", "higher", ("values",), of_row=lambda out, y: (abs(out[:, 0] - y) < 1).astype(float))
    given = {"name": "regression", "loss": "huber", "metrics": [near, "mae"]}
    run = fedjax8.experiment((X, X @ np.ones(4)), nn.Dense(1), task=given, **SMALL)
    assert run.record["task"]["metric"] == "near" and 0 <= run.metrics[-1]["test_near"] <= 1
    assert "test_mae" in run.metrics[-1] and "test near" in repr(run)
    again = fedjax8.experiment((X, X @ np.ones(4)), nn.Dense(1), task=run.experiment.task, **SMALL)
    assert without_seconds(again.metrics) == without_seconds(run.metrics)
    with pytest.raises(UserError, match="data and model and task given from Python"):
        _ = fedjax8.load(run.path).experiment


def test_rows_for_testing_are_drawn_once_and_clients_go_with_them():
    clients = np.repeat(np.arange(6), 10)
    made = data.from_arrays(X, clients % 2, clients=clients, test_share=0.25, seed=3)
    assert len(made.train["x"]) == 45 and len(made.test["x"]) == 15
    both = np.concatenate([made.train["x"], made.test["x"]])
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(X, axis=0))
    for columns, owners in ((made.train, made.owners), (made.test, made.test_owners)):
        np.testing.assert_array_equal(columns["y"], owners % 2)


@pytest.mark.parametrize(
    ("arguments", "fields", "match"),
    [
        (("digits",), {"rouns": 3, "uplink": 3}, "2 mistakes:.*did you mean 'rounds'"),
        (("digits",), {"client": {"epoch": 1}}, "did you mean 'epochs'"),
        (("digits",), {"client": 3}, "client is a section"),
        (("digits",), {"rounds": -1}, "config.rounds is -1"),
        (("digits",), {"uplink": "fp9"}, "did you mean 'fp8'"),
        ((3,), {}, "data must be the name of a source"),
        (({"x": X},), {}, "needs x and y"),
        (((X, X[:, 0]), nn.Dense(1)), {}, "regression"),
        (("digits",), {"task": tasks.metrics.accuracy()}, "task is the metric accuracy: give a task with it"),
        (("digits",), {"task": {"name": "regression", "metrics": [tasks.metrics.accuracy()]}}, "no metric of regr"),
        (("digits",), {"task": {"name": "regression", "los": 1, "metrics": [tasks.metrics.mae()]}}, "mean 'loss'"),
        (("digits", 3), {}, "model must be the name of a model"),
    ],
)
def test_mistakes_are_named_before_anything_runs(arguments, fields, match, tmp_path):
    with pytest.raises(UserError, match=f"(?s){match}"):
        fedjax8.experiment(*arguments, workdir=tmp_path / "run", **{**SMALL, **fields})
    assert not (tmp_path / "run").exists()


class Shown(list):
    """A stand-in for the display of a notebook, which keeps what is shown."""

    def __call__(self, bar, display_id):
        assert display_id
        self.append(bar._repr_html_())
        return self

    def update(self, bar):
        self.append(bar._repr_html_())


def test_a_bar_in_a_notebook_moves_and_goes():
    shown = Shown()
    bar = NotebookBar(shown)
    task = bar.add_task("rounds", total=10, completed=2)
    bar.start()
    bar.update(task, completed=3, note="accuracy <0.5")
    bar.stop()
    assert ["round 2 of 10" in shown[0], "round 3 of 10 accuracy &lt;0.5" in shown[1], shown[2]] == [True, True, ""]
    assert not in_notebook()
