"""A run read back: its files, its models, evaluations, more rounds."""

import json
import shutil

import jax
import numpy as np
import pytest

import fedjax8
from fedjax8 import models, trees
from fedjax8.config import component, plain
from fedjax8.data.held_out import held_out
from fedjax8.errors import UserError


@pytest.fixture(scope="module")
def run(run_folder, run_module):
    loaded = fedjax8.load(run_folder)
    loaded.experiment = run_module.built(loaded.config)  # compiled already; that it is built so is tested below
    return loaded


def leaves(variables):
    return {name: np.asarray(leaf) for name, leaf in trees.named_leaves(variables._asdict()).items()}


def same(a, b):
    a, b = leaves(a), leaves(b)
    assert list(a) == list(b)
    for name, leaf in a.items():
        np.testing.assert_array_equal(leaf, b[name], err_msg=name)


def test_what_its_files_say(run, run_folder, run_module):
    assert "load" in dir(fedjax8) and callable(fedjax8.load)
    assert plain(run.config) == plain(run_module.config())
    assert run.settings["uplink"]["rounding"] == "stochastic" and run.settings["rounds"] == 4
    assert run.metrics == [json.loads(text) for text in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert run.summary == json.loads((run_folder / "summary.json").read_text())
    assert run.about == json.loads((run_folder / "about.json").read_text())
    assert run.rounds == (2, 4)
    accuracy, up = run.summary["test_accuracy"], run.summary["uplink_bytes"]
    assert 1000 < up < 10_000
    for words in ("fedavg on digits", "4 rounds", "finished", f"{accuracy:.4f}", f"{up / 1000:.2f} kB up", "2, 4"):
        assert words in repr(run)


def test_what_is_not_finite_or_cannot_be_read_is_shown_as_such(run_folder, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(run_folder, folder)
    log, last = folder / "metrics.jsonl", {"round": 4, "uplink_bytes": 10**6, "downlink_bytes": 10**6}
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + json.dumps(last | {"test_accuracy": None, "test_loss": None}) + "\n")
    (folder / "summary.json").write_text(json.dumps({"rounds": 4, "test_accuracy": None, "finished": True}))
    run = fedjax8.load(folder)
    assert "test accuracy not finite, test loss not finite" in repr(run) and "not finite" in run._repr_html_()
    log.write_text(lines[0] + lines[1][:20] + "\n" + lines[2])
    run = fedjax8.load(folder)
    assert "line 2: not JSON" in repr(run) and "line 2: not JSON" in run._repr_html_()
    (folder / "config.json").write_text("{")
    assert "is damaged" in repr(fedjax8.load(folder))


def test_its_table_has_a_row_for_each_round(run):
    pandas = pytest.importorskip("pandas")
    table = run.table()
    assert list(table.index) == [1, 2, 3, 4] and isinstance(table, pandas.DataFrame)
    assert table["uplink_bytes"].tolist() == [line["uplink_bytes"] for line in run.metrics]
    assert table["test_accuracy"].isna().tolist() == [True, False, True, False]


@pytest.mark.parametrize("number", [2, 4, None])
def test_an_evaluation_is_that_of_the_run(run, number):
    line = run.metrics[(number or 4) - 1]
    found = run.evaluate(round=number)
    assert set(found) == {f"{view}test_{metric}" for view in ("", "float32_") for metric in ("accuracy", "loss")}
    assert "clip/Dense_0/kernel" in line and found == {name: line[name] for name in found}


def test_own_rows_are_evaluated_as_their_outputs_say(run, rng):
    test = run.experiment.dataset.test
    some = rng.choice(len(test["y"]), 301, replace=False)
    rows = {"x": test["x"][some], "y": test["y"][some]}
    outputs = run.predict(rows["x"], round=2)
    assert outputs.shape == (301, 10)
    found = run.evaluate(rows, round=2)
    assert found["test_accuracy"] == pytest.approx(np.mean(outputs.argmax(1) == rows["y"]), abs=1e-6)
    shifted = outputs - outputs.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(301), rows["y"]]
    assert found["test_loss"] == pytest.approx(losses.mean(), rel=1e-4)  # sums in another order, on another grid point
    with pytest.raises(UserError, match="'x' is float32"):
        run.evaluate(rows | {"x": np.float32(rows["x"])})
    with pytest.raises(UserError, match=r"predict: x is uint8 \(301, 8\)"):
        run.predict(rows["x"][:, 0, :, 0])


def test_a_model_is_that_of_its_checkpoint(run, run_folder):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(run_folder / "checkpoints") as manager:
        for number in (2, 4):
            found = manager.restore(number, args=ocp.args.Composite(arrays=ocp.args.StandardRestore())).arrays
            stored = {leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(found))}
            ours = leaves(run.variables(number))
            assert len(ours) == 8 and all(leaf.tobytes() in stored for leaf in ours.values())
    assert not np.array_equal(
        run.variables(2).params["Dense_0"]["kernel"], run.variables(4).params["Dense_0"]["kernel"]
    )


def test_every_finished_run_leaves_its_model_and_others_are_exported(run, run_folder, tmp_path):
    from fedjax8.models.saved import load_model

    same(load_model(run_folder / "model.safetensors", run.variables()), run.variables(4))
    file = run.export(tmp_path / "two.safetensors", round=2)
    same(load_model(file, run.variables()), run.variables(2))
    np.testing.assert_array_equal(
        models.load_params(file)["Dense_1"]["bias"], run.variables(2).params["Dense_1"]["bias"]
    )
    library = pytest.importorskip("safetensors.numpy")
    assert library.load_file(file).keys() == leaves(run.variables(2)).keys()


def test_more_rounds_are_those_of_an_unbroken_run(run_folder, run_module, tmp_path, capfd):
    shutil.copytree(run_folder, tmp_path / "a")
    longer = fedjax8.load(tmp_path / "a").go_on(rounds=7, quiet=True)
    assert not capfd.readouterr().out
    whole = run_module.run(run_module.config(rounds=7), tmp_path / "b")
    assert longer.rounds == (6, 7) and longer.summary["finished"] and longer.config.rounds == 7
    same(longer.variables(), fedjax8.load(tmp_path / "b").variables())
    assert run_module.lines(tmp_path / "a") == run_module.lines(tmp_path / "b")
    assert longer.state().ledger == whole.state.ledger
    parts = longer.record["parts"]
    assert [part["after_round"] for part in parts] == [0, 4]
    assert parts[1]["command"] == f"load({str(tmp_path / 'a')!r}).go_on(7)" and parts[1]["host"]
    with pytest.raises(UserError, match=r"has done 7 rounds, more than config\.rounds=5; nothing is lost"):
        longer.go_on(rounds=5)


def test_a_state_goes_on_without_files(run):
    state = run.state(2)
    while state.round < 4:
        state, _ = run.simulation.run_rounds(state, 4 - state.round)
    same(run.simulation.variables(state), run.variables(4))


def test_a_fine_tuned_model_is_the_one_that_evaluations_of_clients_score(run):
    held = held_out(run.experiment.dataset, run.simulation.data, run.simulation.seed).clients
    state, client = run.state(), 1
    scores = run.simulation.evaluate_clients(state, np.array([client]), held, fine_tune_steps=3)
    rows = {name: column[held.rows(client)] for name, column in held.columns.items()}
    tuned = run.fine_tune(client, steps=3)
    found = run.evaluate(rows, variables=tuned)
    assert found["test_loss"] == pytest.approx(float(scores.metrics["loss"][0]), rel=1e-5)  # sums in another order
    assert abs(found["test_loss"] - run.evaluate(rows)["test_loss"]) > 1e-3
    with pytest.raises(UserError, match="no client 6; there are 6"):
        run.fine_tune(6, steps=1)
    with pytest.raises(UserError, match="steps is 0"):
        run.fine_tune(1, steps=0)


def test_clients_own_models_are_read_also_from_disk_and_nothing_is_changed(run_module, tmp_path, monkeypatch):
    defaults = {"folder": None, "limit_bytes": 0}
    monkeypatch.setattr("fedjax8.engine.states.client_states.client_states.__kwdefaults__", defaults)
    fields = {"algorithm": component("local_only"), "uplink": component("none"), "downlink": component("none")}
    ends = {n: run_module.run(run_module.config(rounds=n, **fields), tmp_path / str(n)).state for n in (2, 4)}
    before = run_module.content(tmp_path / "4")
    assert any(name.startswith("client_states/") for name in before)
    run = fedjax8.load(tmp_path / "4")
    kernels = {}
    for number, state in ends.items():
        own = trees.named_leaves(state.clients.read(np.arange(6))["algorithm"])
        kernels[number] = next(leaf for name, leaf in own.items() if name.endswith("Dense_1/kernel"))
        for client in range(6):
            found = run.variables(number, client=client).params["Dense_1"]["kernel"]
            np.testing.assert_array_equal(found, kernels[number][client])
    assert not np.array_equal(kernels[4][0], kernels[4][5]) and not np.array_equal(kernels[2], kernels[4])
    assert run_module.content(tmp_path / "4") == before


def test_what_cannot_be_loaded_is_one_line(run, run_folder, tmp_path):
    with pytest.raises(UserError, match="has no checkpoint of round 3, but of 2, 4"):
        run.variables(3)
    with pytest.raises(UserError, match=r"no config\.json; give the --workdir"):
        fedjax8.load(tmp_path)
    shutil.copytree(run_folder, tmp_path / "seed-0")
    with pytest.raises(UserError, match="its folders seed-0 do"):
        fedjax8.load(tmp_path)
    record = json.loads((run_folder / "config.json").read_text())
    other = record | {"data": record["data"] | {"test.y": "int32 [9] 00"}}
    (tmp_path / "seed-0" / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"was run on other data \(test.y: int32 \[9\] 00 -> .*give the data_dir"):
        fedjax8.load(tmp_path / "seed-0").evaluate()
    other = record | {"versions": record["versions"] | {"optax": "0.0.1"}}
    (tmp_path / "seed-0" / "config.json").write_text(json.dumps(other))
    shutil.rmtree(tmp_path / "seed-0" / "checkpoints")
    loaded = fedjax8.load(tmp_path / "seed-0")
    assert "no checkpoint" in repr(loaded)
    with pytest.warns(UserWarning, match=r"run by other versions \(optax: 0.0.1 -> "):
        built = loaded.experiment
    assert (built.dataset.name, built.simulation.num_clients, built.simulation.cohort_size) == ("digits", 6, 3)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        loaded.variables()
    (tmp_path / "seed-0" / "metrics.jsonl").write_text("")
    assert "no round logged yet" in repr(fedjax8.load(tmp_path / "seed-0"))


def test_a_run_is_named_by_a_relative_path_too(run, run_folder, monkeypatch):
    monkeypatch.chdir(run_folder.parent)
    named = fedjax8.load(run_folder.name)
    named.experiment = run.experiment
    same(named.variables(2), run.variables(2))


def test_a_damaged_checkpoint_is_one_line(run, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "a")
    for path in (tmp_path / "a" / "checkpoints" / "4").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    damaged = fedjax8.load(tmp_path / "a")
    damaged.experiment = run.experiment
    with pytest.raises(UserError, match="checkpoints/4 cannot be read") as refused:
        damaged.variables()
    assert "\n" not in str(refused.value)
    same(damaged.variables(2), run.variables(2))
