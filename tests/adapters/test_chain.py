"""Several adapters in the one place that a config has for them."""

import jax
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.adapters.chain import chain
from fedjax8.adapters.lora import lora
from fedjax8.adapters.pretrained import pretrained
from fedjax8.adapters.qat import qat
from fedjax8.build import build
from fedjax8.config import base_config, component, override, plain, validate
from fedjax8.errors import UserError
from fedjax8.models.pretrained import save_params

KEY = jax.random.key(0)


def config_with(*adapters):
    config = base_config()
    config.adapter = component("chain", adapters=adapters)
    return config


def test_the_first_is_innermost(tiny, tokens):
    got, want = (
        jax.eval_shape(model.init, KEY, tokens)
        for model in (chain(tiny, [qat, lambda model: lora(model, 2)]), lora(qat(tiny), 2))
    )
    assert got == want
    assert any(name.endswith("kernel_clip") for name in trees.named_leaves(got.frozen))


def test_a_config_puts_adapters_with_their_settings_around_a_model_from_a_file(tmp_path):
    pytest.importorskip("safetensors")
    plain_config = base_config()
    plain_config.adapter = component("none")
    base = build(plain_config)
    batch = {name: column[:4] for name, column in base.dataset.train.items()}
    made = jax.jit(base.simulation.model.init)(jax.random.key(7), batch)
    file = str(tmp_path / "base.safetensors")
    save_params(file, made.params)

    config = config_with(component("pretrained", file=file), component("lora", rank=3))
    override(config, [("adapter.adapters.1.rank", "2")])
    validate(config)
    assert plain(config)["adapter"]["adapters"][1] == {"name": "lora", "rank": 2}
    own = jax.jit(build(config).simulation.model.init)(KEY, batch)
    leaves = trees.named_leaves(own.params) | trees.named_leaves(own.frozen)
    for name, leaf in trees.named_leaves(made.params).items():
        np.testing.assert_array_equal(leaves[name], leaf)
    assert {leaf.shape[-1] for name, leaf in leaves.items() if name.endswith("lora/a")} == {2}


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ((component("qat"), component("lora", rnk=2)), r"config.adapter.adapters.1: lora has no setting 'rnk'.*rank"),
        ((component("lora", rank=0),), r"config.adapter.adapters.0: rank must be at least 1, got 0"),
        ((component("lroa"),), r"lroa.*did you mean.*lora"),
        ((), r"config.adapter: chain needs at least one adapter"),
        (("lora",), r"config.adapter: an adapter is needed, such as component\('lora'\); got 'lora'"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(adapters, message):
    with pytest.raises(UserError, match=message):
        build(config_with(*adapters))


def test_a_file_that_does_not_fit_is_told_in_full(tmp_path, tiny, tokens):
    pytest.importorskip("safetensors")
    long = "_".join(["name"] * 60)
    save_params(tmp_path / "other.safetensors", {long: np.zeros(2, np.float32), "last": np.zeros(3, np.float32)})
    with pytest.raises(UserError) as told:
        build(config_with(component("pretrained", file=str(tmp_path / "other.safetensors"))))
    with pytest.raises(UserError) as alone:
        model = pretrained(tiny, str(tmp_path / "other.safetensors"))
        jax.eval_shape(model.init, KEY, tokens)
    assert "config.model does not fit rows" not in str(told.value)
    assert len(str(alone.value)) > 200 and long in str(told.value)


def test_pretrained_around_what_is_frozen_is_refused(tmp_path, tiny, tokens):
    pytest.importorskip("safetensors")
    save_params(tmp_path / "file.safetensors", {"x": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match=r"lora\(pretrained\(model\)\)"):
        jax.eval_shape(pretrained(lora(tiny, 2), str(tmp_path / "file.safetensors")).init, KEY, tokens)
