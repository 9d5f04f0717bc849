"""configs/fp8.py: every cell of the study loads, is valid, and names components that exist and take its settings."""

import functools
import importlib.util
import inspect
import itertools
import pathlib

import pytest

from fedjax8.components import SEAMS, build_component
from fedjax8.config import check_call, is_component, load_config, override, plain, validate
from fedjax8.errors import UserError

FILE = pathlib.Path(__file__).parents[1] / "fedjax8" / "configs" / "fp8.py"
METHODS = ("float32", "uq", "uq_plus", "biased", "no_qat")
IMAGES = {"lenet": "cnn", "lenet5": "lenet5", "resnet20": "resnet20", "resnet18": "resnet18"}
SPEECH = {"matchboxnet": "matchboxnet", "kwt1": "kwt1"}
GROUPS = [
    *itertools.product(("cifar10", "cifar100"), IMAGES, ("iid", "dirichlet")),
    *itertools.product(("speech",), SPEECH, ("iid", "speaker")),
]
SUPPLIED = {"data": ("data_dir",), "model": ("num_classes",), "adapter": ("model",), "algorithm": ("local",)}


@functools.cache
def cell(*words):
    return load_config(f"{FILE}:{','.join(words)}")


def components(config, field=None, where="config"):
    """(where, field, component) of every component in a config, nested ones too."""
    for name, value in config.items():
        if is_component(value):
            yield f"{where}.{name}", name, value
        if hasattr(value, "items"):
            yield from components(value, name, f"{where}.{name}")


@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_every_cell_is_valid_and_its_components_take_their_settings(group):
    data, model, split = group
    for method in METHODS:
        config = cell(*group, method)
        validate(config)
        found = list(components(config))
        assert {field for _, field, _ in found} >= {"data", "model", "partition", "adapter", "algorithm", "optimizer"}
        for where, field, settings in found:
            factory = SEAMS[field].finder(settings.name)
            supplied = [n for n in SUPPLIED.get(field, ()) if n in inspect.signature(factory).parameters]
            check_call(where, factory, {n: v for n, v in settings.items() if n != "name"}, supplied)
        assert config.data.name == {"speech": "speech_commands"}.get(data, data)
        assert config.model.name == (SPEECH | IMAGES)[model]
        assert config.partition.name == {"speaker": "by_key"}.get(split, split)


def test_the_study_is_what_its_docstring_says():
    """The settings of the vision and the speech cells, word for word."""
    vision, speech = (plain(cell(*words, "uq")) for words in (("cifar10", "lenet", "dirichlet"), GROUPS[-1]))
    assert vision["partition"] == {"name": "dirichlet", "concentration": 0.3}
    assert (vision["num_clients"], vision["cohort_size"], vision["rounds"], vision["augment"]) == (100, 10, 1000, [])
    assert {n: vision["client"][n] for n in ("batch_size", "epochs", "steps", "weight_decay")} == {
        "batch_size": 50,
        "epochs": 5,
        "steps": 0,
        "weight_decay": 1e-3,
    }
    assert vision["client"]["optimizer"] == {"name": "sgd", "learning_rate": 0.1}
    assert GROUPS[-1] == ("speech", "kwt1", "speaker")
    assert (speech["num_clients"], speech["cohort_size"], speech["rounds"]) == (0, 100, 1000)  # 0: as the data says
    assert {n: speech["client"][n] for n in ("batch_size", "epochs", "weight_decay")} == {
        "batch_size": 16,
        "epochs": 1,
        "weight_decay": 0.0,
    }
    assert speech["client"]["optimizer"] == {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("group", [("cifar10", "lenet", "dirichlet"), ("speech", "kwt1", "speaker")], ids="-".join)
def test_methods_differ_in_what_is_quantized_and_in_nothing_else(group):
    fp8, biased, none = {"name": "fp8"}, {"name": "fp8", "rounding": "nearest"}, {"name": "none"}
    uq = {"adapter": {"name": "qat"}, "uplink": fp8, "downlink": fp8, "algorithm": {"name": "fedavg"}}
    expected = {
        "float32": uq | {"adapter": none, "uplink": none, "downlink": none},
        "uq": uq,
        "uq_plus": uq | {"algorithm": {"name": "fedavg", "refine": {"name": "uq_plus"}}},
        "biased": uq | {"uplink": biased, "downlink": biased},
        "no_qat": uq | {"adapter": {"name": "ptq"}},
    }
    configs = {method: plain(cell(*group, method)) for method in METHODS}
    for method, config in configs.items():
        assert {name: config[name] for name in uq} == expected[method]
        assert {n: v for n, v in config.items() if n not in uq} == {
            n: v for n, v in configs["uq"].items() if n not in uq
        }


@pytest.mark.parametrize("method", METHODS)
def test_the_word_e4m3fnuz_repeats_the_measured_grid_with_float32_gradients_and_changes_nothing_else(method):
    default, measured = (plain(cell("cifar10", "lenet5", "iid", *words)) for words in ((method,), (method, "e4m3fnuz")))
    assert default == plain(cell("cifar10", "lenet5", "iid", method, "e4m3fn"))
    assert default["format"] == "e4m3fn"
    changed = {} if method == "float32" else {"format": "e4m3fnuz"}
    if default["adapter"]["name"] == "qat":
        changed["adapter"] = {"name": "qat", "gradients": None}
    assert measured == default | changed


def test_the_codecs_of_the_methods_are_unbiased_or_not_as_they_say():
    for method, unbiased in (("uq", True), ("uq_plus", True), ("no_qat", True), ("biased", False)):
        config = cell("cifar10", "lenet", "iid", method)
        for link in ("uplink", "downlink"):
            assert build_component(f"config.{link}", config[link], SEAMS[link]).unbiased == unbiased


def test_without_an_argument_it_is_uq_on_lenet_and_label_skew():
    assert plain(load_config(str(FILE))) == plain(cell("cifar10", "lenet", "dirichlet", "uq"))
    assert plain(cell(" cifar10", " lenet", "dirichlet ", "uq")) == plain(load_config(str(FILE)))


def test_a_cell_can_be_shortened_and_changed_by_flags():
    config = load_config(f"{FILE}:cifar10,lenet,iid,uq_plus")
    override(config, [("rounds", "3"), ("algorithm.refine.points", "7"), ("uplink.clip", "raised")])
    validate(config)
    assert config.rounds == 3
    assert plain(config.algorithm.refine) == {"name": "uq_plus", "points": 7}
    refine = build_component("config.algorithm.refine", config.algorithm.refine, SEAMS["refine"])
    assert isinstance(refine, SEAMS["refine"].kind)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cifar1,lenet,iid,uq", "no data 'cifar1' here; allowed are cifar10, cifar100, speech; did you mean 'cifar10'"),
        ("cifar10,resnet-18,iid,uq", "no model 'resnet-18'.*lenet5, resnet20, resnet18; did you mean 'resnet18'"),
        ("speech,lenet,iid,uq", "no model 'lenet' here; allowed are matchboxnet, kwt1"),
        ("cifar10,kwt1,iid,uq", "no model 'kwt1' here; allowed are lenet, lenet5, resnet20, resnet18"),
        ("cifar10,lenet,dirichlt,uq", "no split 'dirichlt' here; allowed are iid, dirichlet; did you mean 'dirichlet'"),
        ("cifar10,lenet,speaker,uq", "no split 'speaker' here; allowed are iid, dirichlet"),
        ("speech,kwt1,dirichlet,uq", "no split 'dirichlet' here; allowed are iid, speaker"),
        (
            "cifar10,lenet,iid,uqplus",
            "no method 'uqplus'.*float32, uq, uq_plus, biased, no_qat; did you mean 'uq_plus'",
        ),
        ("cifar10,lenet,uq", "data,model,split,method.*, such as cifar10,lenet,dirichlet,uq; got 'cifar10,lenet,uq'"),
        ("cifar10,lenet,iid,uq,e4m3fnuz,1", "a cell is data,model,split,method"),
        ("cifar10,lenet,iid,uq,e4m3", "no grid 'e4m3' here; allowed are e4m3fn, e4m3fnuz; did you mean 'e4m3fn'"),
    ],
)
def test_a_wrong_word_is_named_with_those_allowed_and_the_nearest(words, message):
    with pytest.raises(UserError, match=message):
        load_config(f"{FILE}:{words}")


def test_these_tests_go_through_every_word_of_the_file():
    spec = importlib.util.spec_from_file_location("fedjax8_fp8_cells", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.METHODS == METHODS
    named = {(data, m, s) for data, (names, splits) in module.CELLS.items() for m in names for s in splits}
    assert named == set(GROUPS)
