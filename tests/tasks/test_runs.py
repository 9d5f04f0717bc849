"""Runs of each task, from a file to metrics: those of scikit-learn on their own outputs, on one device or several."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from fedjax8 import train
from fedjax8.build import build
from fedjax8.config import base_config, override
from fedjax8.engine.evaluation import evaluation
from fedjax8.errors import UserError
from fedjax8.executors import pmap, vmap

RNG = np.random.default_rng(11)
X = RNG.standard_normal((90, 6)).astype(np.float32)
CLASSES = (X @ RNG.standard_normal((6, 3))).argmax(1)
SETS = {
    "regression": X @ RNG.standard_normal((6, 2)) + 0.1,
    "multilabel": (X[:, :4] > 0.3).astype(np.int64),
    "binary": (X[:, 0] > 0).astype(np.int64),
    "classification": CLASSES,
}
METRICS = {
    "regression": "mae,rmse,r2",
    "multilabel": "macro_f1,label_accuracy,auc",
    "binary": "auc,accuracy",
    "classification": "macro_f1,accuracy,calibration_error",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, y in SETS.items():
        np.savez(folder / f"{name}.npz", x_train=X[:60], y_train=y[:60], x_test=X[60:], y_test=y[60:])
    return folder


def config_of(task, file=None, *flags):
    config = base_config()
    override(
        config,
        [
            ("task.name", task),
            ("data.name", "npz"),
            ("data.file", file or task),
            ("partition.name", "iid"),
            ("num_clients", "5"),
            ("cohort_size", "3"),
            ("rounds", "2"),
            ("model.name", "mlp"),
            ("model.hidden", "(4,)"),
            ("executor.name", "vmap"),
            *(flag.split("=", 1) for flag in flags),
        ],
    )
    return config


@pytest.fixture(scope="module", params=SETS)
def trained(request, data):
    task = request.param
    experiment = build(config_of(task, None, f"task.metrics={METRICS[task]}"), str(data))
    simulation = experiment.simulation
    state, lines = simulation.run_rounds(simulation.init(), 2)
    return task, experiment, simulation.variables(state), lines


def test_metrics_of_a_run_are_those_of_scikit_learn_on_its_outputs(trained):
    task, experiment, variables, lines = trained
    test = experiment.dataset.test
    outputs, _ = experiment.simulation.model.apply(variables, {"x": jnp.asarray(test["x"]), "mask": jnp.ones(30)})
    outputs, y = np.asarray(outputs, np.float64), test["y"]
    found = evaluation(experiment.simulation.model, test, vmap(), batch_size=7)(variables)
    f1 = lambda named: sklearn.metrics.f1_score(y, named, average="macro", zero_division=0)
    wanted = {
        "regression": lambda: {
            "mae": sklearn.metrics.mean_absolute_error(y, outputs),
            "rmse": np.sqrt(sklearn.metrics.mean_squared_error(y, outputs)),
            "r2": sklearn.metrics.r2_score(y, outputs),
        },
        "multilabel": lambda: {
            "macro_f1": f1(outputs > 0),
            "label_accuracy": 1 - sklearn.metrics.hamming_loss(y, outputs > 0),
            "auc": sklearn.metrics.roc_auc_score(y, outputs, average="macro"),
        },
        "binary": lambda: {
            "auc": sklearn.metrics.roc_auc_score(y, outputs),
            "accuracy": sklearn.metrics.accuracy_score(y, outputs[:, 0] > 0),
        },
        "classification": lambda: {
            "macro_f1": f1(outputs.argmax(1)),
            "accuracy": sklearn.metrics.accuracy_score(y, outputs.argmax(1)),
        },
    }[task]()
    for name, value in wanted.items():
        assert found[f"test_{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        assert f"float32_test_{name}" in found
    assert all(np.isfinite(value) for value in found.values())
    of_rows = {"mae", "label_accuracy", "accuracy"} & set(METRICS[task].split(","))
    assert all(f"train_{name}" in lines[-1] for name in of_rows)


def test_several_devices_and_other_batches_give_the_same_metrics(trained):
    _, experiment, variables, _ = trained
    model, test = experiment.simulation.model, experiment.dataset.test
    one = evaluation(model, test, vmap())(variables)
    two = evaluation(model, test, pmap(2, 2), batch_size=4)(variables)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-5), name


def test_a_run_records_its_task_and_compares_its_clients_by_it(data, tmp_path):
    flags = ["--config.task.name=regression", "--config.data.name=npz", "--config.data.file=regression"]
    flags += ["--config.partition.name=iid", "--config.num_clients=5", "--config.cohort_size=3", "--config.rounds=2"]
    flags += ["--config.model.hidden=(4,)", "--config.evaluate_clients.every=2", f"--data_dir={data}"]
    assert train.main(["train", *flags, f"--workdir={tmp_path / 'run'}"]) == 0
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["task"]
    directions = {"loss": "lower", "mae": "lower", "rmse": "lower"}
    assert recorded == {"name": "regression", "metric": "mae", "directions": directions}
    clients = json.loads((tmp_path / "run" / "clients.json").read_text())
    assert clients["metric"] == "mae" and len(clients["mae"]) == 5
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["personal_mae"] == pytest.approx(np.mean(clients["mae"]))
    assert line["personal_worst_tenth"] == pytest.approx(max(clients["mae"]))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_mae"] == line["test_mae"] and "test_accuracy" not in summary and not summary["diverged"]


@pytest.mark.parametrize(
    "task, file, flags, match",
    [
        ("regression", "classification", ["data.name=digits"], "config.task: regression takes .* float32"),
        ("classification", "regression", [], "or for measured numbers the task regression|must be .* integers"),
        ("multilabel", "classification", [], r"must be \[60, L\] of 0 and 1"),
        ("binary", "classification", [], "set --config.task.name=classification"),
        ("regression", "regression", ["partition.name=dirichlet"], "cannot be split by label; use by_key, iid"),
        ("regression", "regression", ["attack.name=label_flip"], "label_flip exchanges class numbers"),
        ("regression", "regression", ["task.metrics=accuracy"], "accuracy is no metric of regression"),
        ("regression", "regression", ["task.metrics=mea"], "did you mean 'mae'"),
        ("regression", "regression", ["data.num_classes=3"], "num_classes=3 changes nothing"),
    ],
)
def test_what_does_not_go_together_is_refused(data, task, file, flags, match):
    config = config_of(task, file, *[flag for flag in flags if flag != "data.name=digits"])
    if "data.name=digits" in flags:
        override(config, [("data.name", "digits")])
    with pytest.raises(UserError, match=match):
        build(config, str(data))


def test_settings_of_metrics_are_set_by_number(data):
    config = config_of("classification", None, "task.metrics=top_k,accuracy", "task.metrics.0.k=2")
    assert build(config, str(data)).task.main == "top_2"
