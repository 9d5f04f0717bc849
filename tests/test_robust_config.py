"""Attacks, lost clients and robust aggregation by config, over fp8 messages."""

import math

import pytest

from fedjax8.build import build
from fedjax8.config import base_config, override
from fedjax8.errors import UserError

SMALL = [
    ("adapter.name", "none"),
    ("rounds", "2"),
    ("num_clients", "8"),
    ("cohort_size", "7"),
    ("model.hidden", "(4,)"),
]


def built(*pairs):
    config = base_config()
    override(config, [*SMALL, *pairs])
    return build(config)


def test_all_of_it_together_runs_and_is_counted():
    experiment = built(
        ("algorithm.aggregate.name", "krum"),
        ("algorithm.aggregate.byzantine", "2"),
        ("attack.name", "sign_flip"),
        ("attack.count", "4"),
        ("dropout.name", "deadline"),
        ("dropout.seconds", "1e9"),
        ("system.name", "lognormal"),
    )
    simulation = experiment.simulation
    state, lines = simulation.run_rounds(simulation.init(), 2)
    assert 3 <= lines[-1]["attackers"] <= 4  # 4 of 8 clients, 7 of which take part
    assert (lines[-1]["dropped"], lines[-1]["excluded"], lines[-1]["clients"]) == (0, 0, 7)
    assert lines[-1]["aggregate_score"] > 0
    assert math.isfinite(simulation.evaluate(state, experiment.dataset.test)["test_loss"])


def test_labels_are_those_of_the_data():
    experiment = built(("attack.name", "label_flip"), ("attack.share", "0.5"))
    assert experiment.simulation.discover()
    with pytest.raises(UserError, match=r"config.attack.*no setting 'shar'.*did you mean 'share'"):
        built(("attack.name", "label_flip"), ("attack.shar", "0.5"))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("attack.name", "sign_flp")], "did you mean 'sign_flip'"),
        ([("attack.name", "sign_flip"), ("attack.share", "2")], "share from 0 to 1"),
        ([("algorithm.aggregate.name", "krumm")], "did you mean 'krum'"),
        ([("algorithm.aggregate.name", "trimmed_mean"), ("algorithm.aggregate.trim", "0.5")], "below 0.5"),
        ([("algorithm.aggregate", "krum")], "--config.algorithm.aggregate.name=krum"),
        ([("dropout.name", "deadline")], "needs seconds"),
        ([("dropout.name", "deadline"), ("dropout.seconds", "1"), ("dropout.spread", "1")], "no setting 'spread'"),
        ([("dropout.name", "deadline"), ("dropout.seconds", "1")], "has no clock; choose a system model"),
        ([("algorithm.name", "fda"), ("dropout.name", "random"), ("cohort_size", "8")], "every client in every round"),
    ],
)
def test_a_wrong_setting_is_named(pairs, message):
    with pytest.raises(UserError, match=message):
        built(*pairs)
