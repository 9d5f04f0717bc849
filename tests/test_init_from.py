"""Runs that start from the model of another one."""

import json
import shutil

import jax
import numpy as np
import pytest

from fedjax8 import adapters, models, trees
from fedjax8.build import build
from fedjax8.config import component
from fedjax8.errors import UserError
from fedjax8.init_from import Start, open_start, started
from fedjax8.launch import run_of
from fedjax8.models.linen import from_linen
from fedjax8.models.saved import load_model, save_model
from fedjax8.types import Variables

BATCH = {"x": np.ones((2, 8, 8, 1), np.float32), "y": np.zeros(2, np.int32), "mask": np.ones(2, np.float32)}


def leaves(variables):
    return {name: np.asarray(leaf) for name, leaf in trees.named_leaves(variables._asdict()).items()}


def test_a_run_starts_from_anothers_model_and_knows_it(run_folder, run_module, tmp_path):
    config = run_module.config(init_from=str(run_folder))
    experiment = build(config)
    found = leaves(experiment.simulation.variables(experiment.simulation.init()))
    library = pytest.importorskip("safetensors.numpy")
    stored = library.load_file(run_folder / "model.safetensors")
    assert found.keys() == stored.keys() and len(found) == 8
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, stored[name])
    digest = run_of(experiment).record["data"]["init_from"]
    shutil.copy(run_folder / "model.safetensors", tmp_path / "m.safetensors")
    assert open_start(str(tmp_path / "m.safetensors")).digest() == digest
    other = {name: np.array(leaf + np.float32(name == "params/Dense_0/bias")) for name, leaf in stored.items()}
    library.save_file(other, tmp_path / "m.safetensors")
    assert open_start(str(tmp_path / "m.safetensors")).digest() != digest


def test_any_saved_round_is_started_from_and_the_newest_of_an_unfinished_run(run_folder, tmp_path):
    import fedjax8

    run = fedjax8.load(run_folder)
    second = open_start(f"{run_folder}@2")
    for name, leaf in leaves(run.variables(2)).items():
        np.testing.assert_array_equal(second.read(name), leaf)
    assert second.words == f"{run_folder} after round 2"
    with pytest.raises(UserError, match="no checkpoint of round 3"):
        open_start(f"{run_folder}@3")
    shutil.copytree(run_folder, tmp_path / "a")
    save_model(tmp_path / "a" / "model.safetensors", run.variables(2), {"round": "2"})  # the run went on since
    third = open_start(str(tmp_path / "a"))
    name = "params/Dense_0/kernel"
    np.testing.assert_array_equal(third.read(name), run.variables(4).params["Dense_0"]["kernel"])
    assert not np.array_equal(third.read(name), second.read(name))


def start_of(variables):
    found = leaves(variables)
    return Start("other", {name: leaf.shape for name, leaf in found.items()}, found.__getitem__)


def test_a_model_without_the_adapter_starts_inside_of_it():
    model, key = models.mlp((4,)), jax.random.key(0)
    other = model.init(jax.random.key(9), BATCH)
    begun = started(model, adapters.qat, start_of(other)).init(key, BATCH)
    expected = adapters.qat(model._replace(init=lambda key, batch: other)).init(key, BATCH)  # clips by its kernels
    assert "params/Dense_0/kernel_clip" in leaves(begun)
    for name, leaf in leaves(expected).items():
        np.testing.assert_array_equal(leaves(begun)[name], leaf)


def test_adapters_parts_and_frozen_ones_are_taken_from_their_like():
    lora = lambda model: adapters.lora(model, rank=2, targets=("Dense_0",))
    model = models.mlp((4,))
    other = lora(model).init(jax.random.key(9), BATCH)
    assert other.frozen
    begun = started(model, lora, start_of(other)).init(jax.random.key(0), BATCH)
    for name, leaf in leaves(other).items():
        np.testing.assert_array_equal(leaves(begun)[name], leaf)


def test_a_models_state_is_started_from_too(tmp_path):
    from flax import linen

    class Norm(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            return linen.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))

    model = from_linen(Norm(), train_argument="train")
    made = model.init(jax.random.key(0), BATCH)
    other = Variables(made.params, jax.tree.map(lambda x: x + 3, made.state))
    save_model(tmp_path / "m", other)
    begun = started(model, lambda inner: inner, open_start(str(tmp_path / "m"))).init(jax.random.key(1), BATCH)
    assert len(leaves(begun)) == 4
    for name, leaf in leaves(other).items():
        np.testing.assert_array_equal(leaves(begun)[name], leaf)
    assert leaves(load_model(tmp_path / "m", made)).keys() == leaves(other).keys()


def test_models_that_do_not_fit_are_refused_by_the_names_of_their_leaves(run_folder, run_module, tmp_path):
    message = r"another model: of another shape params/Dense_0/bias \(8,\), needed \(9,\), .*Dense_1/kernel"
    with pytest.raises(UserError, match=message):
        build(run_module.config(init_from=str(run_folder), model=component("mlp", hidden=(9,))))
    message = "it has no place for params/Dense_0/input_clip, params/Dense_0/kernel_clip, "
    with pytest.raises(UserError, match=message):
        build(run_module.config(init_from=str(run_folder), adapter=component("none"), format="e4m3fn"))
    models.save_params(tmp_path / "p", {"Dense_0": {"kernel": np.zeros((64, 8), np.float32)}})
    with pytest.raises(UserError, match="it lacks params/Dense_0/bias, params/Dense_0/input_clip,"):
        build(run_module.config(init_from=str(tmp_path / "p")))
    with pytest.raises(UserError, match=r"no file .*give the folder of a run"):
        build(run_module.config(init_from=str(tmp_path / "nothing")))
    adapter = component("pretrained", file=str(tmp_path / "p"))
    with pytest.raises(UserError, match="both say what the model starts from"):
        build(run_module.config(init_from=str(run_folder), adapter=adapter))


def test_a_start_is_part_of_a_runs_identity(run_folder, run_module, tmp_path):
    shutil.copytree(run_folder, tmp_path / "a")
    with pytest.raises(UserError, match=r"a run of another config \(init_from:  -> .*/a\)"):
        run_module.run(run_module.config(init_from=str(run_folder)), tmp_path / "a")
    record = json.loads((run_folder / "config.json").read_text())
    del record["config"]["init_from"], record["config"]["checkpoint_seconds"]  # one written before there were any
    (tmp_path / "a" / "config.json").write_text(json.dumps(record))
    assert run_module.run(run_module.config(), tmp_path / "a").state.round == 4
