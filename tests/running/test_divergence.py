"""Runs that diverged: when one is called that, and what is advised."""

import math

import numpy as np
import pytest

from fedjax8.running.divergence import explanation, exploded, loss_of_a_guess, nothing_usable

GUESS = math.log(10)
CONFIG = {
    "client": {"optimizer": {"name": "sgd", "learning_rate": 1e6}},
    "algorithm": {"name": "fedavg"},
    "attack": {"name": "none"},
}


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (np.array([0, 3, 9]), math.log(10)),
        (np.array([[0, 1, -1], [4, -1, -1]]), math.log(5)),
        (np.array([0, 0]), math.log(2)),
        (np.array([0.5, 1.5]), math.inf),
        (np.zeros(0, int), math.inf),
    ],
)
def test_a_guess_has_the_cross_entropy_of_equal_shares(labels, loss):
    assert loss_of_a_guess({"y": labels}) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"test_loss": 2.3}, False),
        ({"test_loss": 23.0}, False),
        ({"test_loss": 23.1}, True),  # 10 ln 10 = 23.026
        ({"test_loss": 4e5}, True),
        ({"test_loss": math.nan}, True),
        ({"test_loss": math.inf}, True),
        ({"test_loss": None}, True),
        ({}, False),
    ],
)
def test_a_loss_far_above_a_guess_or_not_finite_is_one_that_exploded(metrics, expected):
    assert exploded(metrics, GUESS) is expected


def test_a_round_without_a_usable_contribution_is_one_that_excluded_all():
    assert nothing_usable({"clients": 0, "excluded": 3})
    assert not nothing_usable({"clients": 1, "excluded": 2})
    assert not nothing_usable({"clients": 0, "excluded": 0})  # all were lost on the way: nobody diverged


def test_a_run_that_learned_gets_no_sentence():
    assert explanation({"round": 5, "test_loss": 0.3}, GUESS, 0, CONFIG) == ""


def test_a_step_too_large_is_named_with_its_value():
    text = explanation({"round": 5, "test_loss": 4e5}, GUESS, 0, CONFIG)
    assert text == (
        "diverged: the test loss is 4e+05, that of a guess 2.3. "
        "Try a smaller --config.client.optimizer.learning_rate (it is 1e+06)."
    )


@pytest.mark.parametrize(
    ("change", "unusable", "loss", "advice"),
    [
        ({}, 5, 2.3, "smaller --config.client.optimizer.learning_rate"),
        ({}, 5, math.nan, "The initial model's loss is so already"),
        ({}, 2, math.nan, "smaller --config.client.optimizer.learning_rate"),
        ({"algorithm": {"name": "fedavg", "aggregate": {"name": "norm_bound"}}}, 5, 2.3, "norm_bound leaves out"),
        ({"attack": {"name": "sign_flip"}}, 0, 1e9, "Clients attack by sign_flip"),
        ({"client": {"optimizer": {"name": "adam"}}}, 0, 1e9, "learning_rate."),
    ],
)
def test_the_advice_fits_the_cause(change, unusable, loss, advice):
    text = explanation({"round": 5, "test_loss": loss}, GUESS, unusable, CONFIG | change)
    assert advice in text
    assert (f"in the last {unusable} rounds no contribution could be used" in text) == (unusable > 0)


def test_without_a_config_there_is_still_a_sentence():
    assert "the test loss is not finite" in explanation({"round": 1, "test_loss": math.nan}, math.inf, 0, {})
