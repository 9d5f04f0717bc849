"""The command line that evaluates a run."""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from fedjax8 import evaluate
from fedjax8.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def compiled_once(run_folder, run_module):
    """The run's objects are those that it was run with."""
    import fedjax8.loading

    load = fedjax8.loading.load

    def loaded(path, data_dir=None):
        run = load(path, data_dir)
        run.experiment = run_module.built(run.config)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fedjax8.loading, "load", loaded)
        yield


def printed(capsys, *arguments):
    assert evaluate.main(["evaluate", *arguments]) == 0
    return capsys.readouterr().out


def test_it_prints_every_view_of_the_last_model(run_folder, run_module, capsys):
    text = printed(capsys, str(run_folder))
    line = run_module.lines(run_folder)[3]
    assert text.splitlines()[0] == f"{run_folder}, round 4, on 359 rows"
    found = dict(row.split() for row in text.splitlines()[1:])
    assert {"test_accuracy", "float32_test_accuracy", "test_loss", "float32_test_loss"} == set(found)
    assert all(float(value) == pytest.approx(line[name], rel=1e-5) for name, value in found.items())  # six digits


def test_a_line_of_json_of_another_round_is_that_of_the_run(run_folder, run_module, capsys):
    found = json.loads(printed(capsys, str(run_folder), "--round=2", "--as_json"))
    assert (found.pop("run"), found.pop("round")) == (str(run_folder), 2)
    line = run_module.lines(run_folder)[1]
    assert found == {name: line[name] for name in found} and "test_loss" in found
    assert evaluate.finite(np.nan) is None


def test_other_rows_of_its_kind_are_evaluated(run_folder, capsys):
    text = printed(capsys, str(run_folder), "--config.data.test_fraction=0.5")
    assert "on 899 rows" in text or "on 898 rows" in text
    assert "on 359 rows" in printed(capsys, str(run_folder))  # the run's own settings are what they were


def test_flags_hold_beside_settings_of_other_data_also_as_a_command_is_started(run_folder, capsys):
    arguments = ["evaluate", str(run_folder), "--round=2", "--as_json", "--config.data.test_fraction=0.5"]
    assert evaluate.main(evaluate.checked(arguments)) == 0
    assert json.loads(capsys.readouterr().out)["round"] == 2
    assert ", round 4," in printed(capsys, str(run_folder))  # none of them is left for the next command line


def test_other_data_are_read_with_the_targets_of_the_runs_task(run_folder, capsys, monkeypatch, tmp_path):
    from fedjax8.data.sources.digits import digits

    asked = []

    def source(data_dir=None, targets=""):
        asked.append((data_dir, targets))
        return digits(test_fraction=0.3)

    module = types.ModuleType("own_source")
    module.source = source
    monkeypatch.setitem(sys.modules, "own_source", module)
    assert "on 539 rows" in printed(capsys, str(run_folder), "--config.data.name=own_source:source")
    assert asked == [(None, "classes")]


@pytest.mark.parametrize(
    ("field", "trained", "given"),
    [("class_names", "ab", "ac"), ("feature_names", "uv", "vu")],
)
def test_numbers_that_stand_for_other_classes_or_features_are_refused(
    run_folder, capsys, monkeypatch, field, trained, given
):
    import fedjax8.loading
    from fedjax8.data.sources.digits import digits

    load = fedjax8.loading.load

    def loaded(path, data_dir=None):
        run = load(path, data_dir)
        run.experiment = run.experiment._replace(dataset=run.experiment.dataset._replace(**{field: tuple(trained)}))
        return run

    monkeypatch.setattr(fedjax8.loading, "load", loaded)
    module = types.ModuleType("own_source")
    module.source = lambda names: digits()._replace(**{field: tuple(names)})
    monkeypatch.setitem(sys.modules, "own_source", module)
    arguments = [str(run_folder), "--config.data.name=own_source:source"]
    with pytest.raises(UserError, match=f"{', '.join(given)}, but the model was trained on {', '.join(trained)}"):
        evaluate.main(["evaluate", *arguments, f"--config.data.names={given}"])
    assert "on 359 rows" in printed(capsys, *arguments, f"--config.data.names={trained}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--round=3"], "no checkpoint of round 3"),
        (["--config.seed=1"], "config.seed belongs to the run"),
        (["--config.data.name=digit"], "did you mean|allowed are"),
        (["more"], "the folder of one run"),
        (["--round=0"], "lower_bound|positive|must be"),
    ],
)
def test_mistakes_are_one_line(run_folder, arguments, message):
    with pytest.raises(UserError, match=message) as refused:
        evaluate.main(["evaluate", str(run_folder), *arguments])
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_the_command_gives_the_runs_numbers(run_folder, run_module):
    done = subprocess.run(
        [sys.executable, "-m", "fedjax8.evaluate", str(run_folder), "--as_json"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["test_accuracy"] == pytest.approx(run_module.lines(run_folder)[3]["test_accuracy"], abs=1e-6)
