"""Words of other frameworks lead to fields and components that there are."""

import re

import pytest

from fedjax8.components import PACKAGES, SEAMS, build_component
from fedjax8.config import FIELDS, base_config, component, override
from fedjax8.errors import UserError
from fedjax8.listing import components_of, kinds
from fedjax8.overrides import unknown_flag
from fedjax8.words import COMPONENTS, NOTES, field_of
from fedjax8.words import FIELDS as WORDS


@pytest.mark.parametrize("word", sorted(WORDS))
def test_every_word_names_a_field_or_a_setting_of_a_component(word):
    field = WORDS[word]
    outer, _, setting = field.rpartition(".")
    inner = setting in PACKAGES or outer.rpartition(".")[2] in PACKAGES  # momentum of client.optimizer
    assert field in FIELDS or inner
    assert word not in FIELDS


@pytest.mark.parametrize("kind", sorted(COMPONENTS))
def test_every_word_names_components_of_its_kind(kind):
    known = {*components_of(kinds()[kind]), *components_of("algorithms.aggregators")}
    known |= {"fedavgm", "fedadam", "fedyogi", "fedadagrad"}  # optimizers
    for word, ours in COMPONENTS[kind].items():
        assert word == word.lower().replace("_", "") and word not in components_of(kinds()[kind])
        names = re.findall(r"[a-z_0-9]+", re.sub(r"--config[\w.]*=|steps=1|bits=\d", "", ours))
        assert set(names) - {"with", "or", "1"} <= known, (word, ours)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rounds", "3", "no flag --rounds; did you mean --config.rounds=3?"),
        ("epochs", "2", "no flag --epochs; did you mean --config.client.epochs=2?"),
        ("uplink", "topk", "no flag --uplink; did you mean --config.uplink.name=topk?"),
        ("callbacks", "target", "no flag --callbacks; did you mean --config.callbacks=target?"),
        ("lr", "0.1", "no flag --lr; did you mean --config.client.optimizer.learning_rate=0.1?"),
        ("strategy", "fedprox", "no flag --strategy; did you mean --config.algorithm.name=fedprox?"),
        ("num-supernodes", "10", "no flag --num-supernodes; did you mean --config.num_clients=10?"),
        ("wrkdir", "x", "no flag --wrkdir; did you mean --workdir?"),
        ("roundz", "3", "no flag --roundz; did you mean --config.rounds?"),
        ("qqq", "", "no flag --qqq; see --help"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_one_meant(name, value, said):
    assert unknown_flag(name, value, ("workdir", "seeds")) == said


def test_a_fraction_of_clients_is_not_taken_for_their_number():
    for word in NOTES:
        said = unknown_flag(word, "0.1", ())
        assert "--config.cohort_size?" in said and "number of clients" in said and "0.1" not in said


def test_every_field_is_found_by_its_last_part_unless_that_is_another():
    for path in FIELDS:
        last = path.rpartition(".")[2]
        assert field_of(path, FIELDS) == path
        found = field_of(last, FIELDS)
        assert found is None or found in (last, path) or found == WORDS.get(last)


def test_errors_of_overrides_and_components_say_our_words():
    with pytest.raises(UserError, match=r"here it is config\.client\.optimizer\.learning_rate"):
        override(base_config(), [("client.lr", "1")])
    with pytest.raises(UserError, match=r"here it is config\.num_clients"):
        override(base_config(), [("num_supernodes", "10")])
    with pytest.raises(UserError, match="did you mean 'rounds'"):
        override(base_config(), [("round", "10")])
    with pytest.raises(UserError, match=r"here it is fedopt with --config.algorithm.server_optimizer.name=fedavgm"):
        build_component("config.algorithm", component("FedAvgM"), SEAMS["algorithm"])
