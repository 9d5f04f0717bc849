"""configs/fedcode.py: every cell is valid, says what it does, and is what the authors' code has."""

import inspect
import itertools
import pathlib

import pytest

from fedjax8.components import SEAMS
from fedjax8.config import load_config, plain, validate
from fedjax8.errors import UserError

FILE = pathlib.Path(__file__).parents[1] / "fedjax8" / "configs" / "fedcode.py"
CELLS = list(itertools.product(("cifar10", "fashion_mnist"), ("iid", "dirichlet"), ("fedcode", "stagger", "fedavg")))


def cell(*words):
    return load_config(f"{FILE}:{','.join(words)}")


@pytest.mark.parametrize("words", CELLS, ids="-".join)
def test_every_cell_is_valid_and_its_algorithm_takes_its_settings(words):
    config = cell(*words)
    validate(config)
    assert config.data.name == words[0]
    assert config.partition.name == words[1]
    assert config.algorithm.name == ("fedavg" if words[2] == "fedavg" else "fedcode")
    takes = inspect.signature(SEAMS["algorithm"].finder(config.algorithm.name)).parameters
    assert set(config.algorithm) - {"name"} <= set(takes)
    for field in ("data", "model", "partition"):
        assert callable(SEAMS[field].finder(config[field].name))


def test_settings_are_those_of_the_authors_code():
    config = plain(cell("cifar10"))
    assert (config["num_clients"], config["cohort_size"], config["rounds"]) == (10, 10, 100)
    assert (config["client"]["epochs"], config["client"]["batch_size"]) == (4, 128)
    assert config["client"]["optimizer"] == {"name": "adam", "learning_rate": 1e-3}
    assert config["model"] == {"name": "resnet20"} and config["augment"] == ["crop", "flip"]
    defaults = inspect.signature(SEAMS["algorithm"].finder("fedcode")).parameters
    names = ("clusters", "start_round", "down_period", "up_period", "stagger")
    assert [defaults[name].default for name in names] == [64, 2, 5, 2, False]


def test_methods_differ_in_the_algorithm_alone():
    coded, staggered, averaged = (plain(cell("cifar10", "iid", method)) for method in ("fedcode", "stagger", "fedavg"))
    assert (
        {n for n in coded if coded[n] != averaged[n]} == {n for n in coded if coded[n] != staggered[n]} == {"algorithm"}
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cifar100",), "no data 'cifar100' here; allowed are cifar10, fashion_mnist; did you mean 'cifar10'"),
        (("cifar10", "idd"), "no split 'idd' here; allowed are iid, dirichlet"),
        (("cifar10", "iid", "fedcodes"), "no method 'fedcodes' here; .* did you mean 'fedcode'"),
        (("cifar10", "iid", "fedcode", "1"), "give data"),
    ],
)
def test_a_wrong_word_is_named_with_those_allowed(words, message):
    with pytest.raises(UserError, match=message):
        cell(*words)
