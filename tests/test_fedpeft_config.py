"""configs/fedpeft.py: every cell is valid, its components take their settings, and what is the authors' is theirs."""

import functools
import importlib.util
import inspect
import itertools
import pathlib

import pytest

from fedjax8.components import SEAMS
from fedjax8.config import check_call, is_component, load_config, plain, validate
from fedjax8.errors import UserError

FILE = pathlib.Path(__file__).parents[1] / "fedjax8" / "configs" / "fedpeft.py"
METHODS = ("lora", "bias", "full", "head", "adapter", "prompt")
DATA = {"small": "part", "cifar100": "cifar100", "resisc45": "image_folder", "pcam": "pcam"}
SUPPLIED = {
    "data": ("data_dir",),
    "model": ("num_classes",),
    "adapter": ("model",),
    "algorithm": ("local",),
    "privacy": ("facts",),
}


@functools.cache
def cell(*words):
    return load_config(f"{FILE}:{','.join(words)}")


def components(field, value, where="config"):
    """(where, field, component) of every component in a config, those in sequences too."""
    if isinstance(value, tuple):
        for i, one in enumerate(value):
            yield from components(field, one, f"{where}.{i}")
    elif hasattr(value, "items"):
        if is_component(value):
            yield where, field, value
        for name, one in value.items():
            yield from components(name if name in SEAMS else field, one, f"{where}.{name}")


def check(config):
    """Valid, and every component is there and takes its settings."""
    validate(config)
    for where, field, settings in components(None, config):
        factory = SEAMS[field].finder(settings.name)
        takes = inspect.signature(factory).parameters
        supplied = [name for name in SUPPLIED.get(field, ()) if name in takes]
        check_call(where, factory, {n: v for n, v in settings.items() if n != "name"}, supplied)


@pytest.mark.parametrize("data", DATA)
def test_every_method_builds_its_config_on_every_data_set_in_every_setting(data):
    for method, more in itertools.product(METHODS, ((), ("dirichlet0.1", "dp"), ("homogeneous", "dp10", "fp8"))):
        config = cell(method, data, *more)
        check(config)
        assert config.data.name == DATA[data]
        assert config.adapter.adapters[0].name == "pretrained" and len(config.adapter.adapters) == 2
        assert config.partition.name == ("dirichlet" if "dirichlet0.1" in more else "iid") or not more
    if data != "resisc45":
        check(cell("lora", data, "little"))
        assert cell("lora", data, "little").data.rows == (640 if data == "small" else 1000)


def test_words_come_in_any_order_and_without_any_it_is_lora_on_the_small_model():
    assert plain(load_config(str(FILE))) == plain(cell("lora", "small", "homogeneous"))
    assert plain(cell("dp", " dirichlet0.5", "bias", "cifar100")) == plain(
        cell("cifar100", "bias", "dirichlet0.5", "dp")
    )


@pytest.mark.parametrize("data", ["cifar100", "resisc45", "pcam"])
def test_settings_of_the_large_model_are_those_of_the_authors_code(data):
    rates = {  # method: cifar100 and pcam, resisc45, with dp
        "full": (1e-3, 1e-3, 5e-4),
        "head": (5e-3, 5e-3, 1e-3),
        "bias": (1e-2, 5e-3, 5e-3),
        "adapter": (5e-3, 5e-3, 1e-3),
        "prompt": (1e-2, 1e-2, 5e-3),
    }
    for method, (usual, of_resisc, private) in rates.items():
        config = plain(cell(method, data))
        assert (config["num_clients"], config["cohort_size"], config["rounds"]) == (64, 8, 50)
        assert {n: config["client"][n] for n in ("epochs", "batch_size", "weight_decay")} == {
            "epochs": 10,
            "batch_size": 64,
            "weight_decay": 1e-4,
        }
        rate = of_resisc if data == "resisc45" else usual
        sgd = {"name": "sgd", "learning_rate": rate, "momentum": 0.9, "nesterov": True}
        assert config["client"]["optimizer"] == sgd
        assert plain(cell(method, data, "dp"))["client"]["optimizer"] == sgd | {"learning_rate": private}
        assert config["partition"]["concentration"] == (0.5 if data == "pcam" else 0.1)
        assert config["partition"]["min_size"] == 10
    private = {"name": "dp_sgd", "clip": 1.0, "target_epsilon": 5.0, "delta": 1e-3}
    assert plain(cell("bias", data, "dp"))["privacy"] == private
    assert plain(cell("bias", data, "dp10"))["privacy"] == private | {"target_epsilon": 10.0}
    assert plain(cell("full", data))["privacy"] == {"name": "none"}


def test_adapters_are_as_wide_as_the_authors():
    assert plain(cell("adapter", "pcam").adapter.adapters[1]) == {"name": "bottleneck", "width": 96, "shared": True}
    assert cell("prompt", "pcam").adapter.adapters[1].tokens == 10


def test_with_fp8_messages_are_encoded_both_ways_and_without_it_nothing_is():
    assert {cell("lora")[way].name for way in ("uplink", "downlink")} == {"none"}
    assert {cell("lora", "fp8")[way].name for way in ("uplink", "downlink")} == {"fp8"}
    assert cell("lora", "fp8").algorithm.payload == "update"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("loar", "no 'loar'; allowed are lora, bias, .*; did you mean 'lora'"),
        ("lora,bias", "'lora' and 'bias' are both a method; give one"),
        ("dp,dp10", "'dp' and 'dp10' are both a dp; give one"),
        ("resisc45,little", "little goes with small, cifar100 and pcam"),
    ],
)
def test_wrong_words_are_named(words, message):
    with pytest.raises(UserError, match=message):
        load_config(f"{FILE}:{words}")


def test_these_tests_go_through_every_method_and_data_set_of_the_file():
    spec = importlib.util.spec_from_file_location("fedjax8_fedpeft_cells", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert tuple(module.GROUPS["method"]) == METHODS and tuple(DATA) == module.DATA
