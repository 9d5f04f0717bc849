"""Learning rates that follow a schedule by round: named in a config, checked, at clients and server."""

import json
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8.algorithms import server_optimizers
from fedjax8.algorithms.fedopt import fedopt
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.build import build, build_optimizer, build_schedule, step_size
from fedjax8.config import base_config, component, from_plain, override, plain
from fedjax8.errors import UserError
from fedjax8.local import scheduled
from fedjax8.running.divergence import explanation
from fedjax8.types import Pool

RATE = "client.optimizer.learning_rate"
COSINE = (
    (f"{RATE}.name", "cosine_decay_schedule"),
    (f"{RATE}.init_value", "0.1"),
    (f"{RATE}.decay_steps", "60"),
)


def configured(*pairs):
    config = base_config()
    override(config, pairs)
    return config


def test_any_schedule_of_optax_is_the_clients_rate_by_round():
    optimizer = configured(*COSINE).client.optimizer
    schedule = build_schedule(optimizer, 0.0, rounds=60)
    for number in (0, 30, 45):
        assert float(schedule(number)) == pytest.approx(0.05 * (1 + math.cos(math.pi * number / 60)))
    gradient, at_one = {"kernel": jnp.float32([[3.0]])}, build_optimizer(optimizer)
    step, _ = at_one.update(gradient, at_one.init(gradient), gradient)
    np.testing.assert_array_equal(step["kernel"], [[-3.0]])  # the optimizer's own rate is 1


def test_an_algorithm_that_divides_by_the_step_is_told_that_a_scheduled_one_is_of_rate_1():
    optimizer = configured(*COSINE).client.optimizer
    assert step_size(component("scaffold"), optimizer, 0.0) == 1.0


@pytest.mark.slow
def test_scaffold_over_steps_of_rate_1_and_a_schedule_is_scaffold_at_that_rate(toys):
    constant = optax.constant_schedule(0.1)
    over_schedule = lambda local: scaffold(scheduled(local, constant), 1.0)
    at_rate = lambda local: scaffold(local, toys.LEARNING_RATE)
    xs = [
        toys.trajectory(toys.build(make, toys.q2(), steps=2, optimizer=optax.sgd(rate)), 4)
        for make, rate in ((over_schedule, 1.0), (at_rate, toys.LEARNING_RATE))
    ]
    np.testing.assert_allclose(*xs, atol=2e-6)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(f"{RATE}.name", "cosine_decay_schedul")], "did you mean 'cosine_decay_schedule'"),
        ([(f"{RATE}.name", "sgd")], "no schedule 'sgd' in optax"),
        ([(f"{RATE}.name", "linear_schedule")], "linear_schedule needs init_value, end_value, transition_steps"),
        ([*COSINE, (f"{RATE}.alpha", "-1")], r"is -.*at least 0.0 \(in round 32\)"),
        ([*COSINE, (f"{RATE}.init_value", "0.0")], "is 0 in all 60 rounds"),
        ([("client.optimizer.name", "fromage"), *COSINE], "not in proportion to its learning rate"),
        ([("client.optimizer.name", "rprop"), *COSINE], "not in proportion to its learning rate"),
        ([("algorithm.server_learning_rate.name", "linear_schedule")], "config.algorithm.name=fedopt"),
    ],
)
def test_schedules_that_cannot_work_are_refused(pairs, message):
    with pytest.raises(UserError, match=message):
        build(configured(*pairs))


@pytest.mark.parametrize("name", ["adam", "lion", "lars", "adafactor"])
def test_optimizers_whose_steps_are_in_proportion_to_the_rate_take_a_schedule(name):
    """As `check_proportional` finds by their steps, decay included; the rate is then 1."""
    config = component(name, learning_rate=optax.constant_schedule(0.5))
    assert build_schedule(config, 0.1, rounds=3)(0) == 0.5
    assert build_optimizer(config, 0.1).init({"kernel": jnp.ones((2, 2))}) is not None


def test_a_schedule_with_boundaries_is_written_to_json_as_it_is_read_back():
    config = configured(
        (f"{RATE}.name", "piecewise_constant_schedule"),
        (f"{RATE}.init_value", "0.2"),
        (f"{RATE}.boundaries_and_scales", "{2: 0.5}"),
    )
    assert plain(config.client.optimizer.learning_rate)["boundaries_and_scales"] == {"2": 0.5}
    again = from_plain(json.loads(json.dumps(plain(config))))
    assert again.client.optimizer.learning_rate.boundaries_and_scales == {2: 0.5}
    local = build(again).simulation.algorithm.local
    assert [float(local.rate(Pool({}, None, {}, jnp.int32(r)))) for r in (0, 1, 3)] == pytest.approx([0.2, 0.2, 0.1])


def test_a_number_can_stand_in_the_place_of_a_schedule_again():
    """As with --config=RUN/config.json of a run with a schedule."""
    config = configured((f"{RATE}.name", "constant_schedule"), (f"{RATE}.value", "0.2"))
    again = from_plain(json.loads(json.dumps(plain(config))))
    override(again, [(RATE, "0.05")])
    assert again.client.optimizer.learning_rate == 0.05
    with pytest.raises(UserError, match="is a section and cannot be 'fast'"):
        override(config, [(RATE, "fast")])
    with pytest.raises(UserError, match="is a section and cannot be 3"):
        override(config, [("client.optimizer", "3")])


def test_the_servers_schedule_counts_its_steps(toys):
    """Server SGD at rates 1, 0.5, 0.25 over one client that goes a tenth of the way to 1 in a round."""
    halved = optax.exponential_decay(1.0, 1, 0.5)
    sim = toys.build(
        lambda local: fedopt(local, server_optimizer=optax.sgd(halved)), toys.clients([1.0], [1.0]), steps=1
    )
    expected = 1 - np.cumprod([1 - 0.1 * 0.5**r for r in range(3)])
    np.testing.assert_allclose(toys.trajectory(sim, 3), expected, atol=2e-6)


@pytest.mark.parametrize("make", [server_optimizers.fedadam, server_optimizers.fedyogi, server_optimizers.fedadagrad])
def test_adaptive_server_steps_are_multiplied_by_their_schedule(make):
    params, rates = {"x": jnp.float32(0.0)}, (0.2, 0.1)
    plain_steps, scheduled = make(1.0), make(lambda count: jnp.where(count == 0, *rates))
    states = plain_steps.init(params), scheduled.init(params)
    for rate in rates:
        whole, first = plain_steps.update({"x": jnp.float32(-0.5)}, states[0], params)
        step, second = scheduled.update({"x": jnp.float32(-0.5)}, states[1], params)
        states = first, second
        assert float(step["x"]) == pytest.approx(rate * float(whole["x"]), rel=1e-6)
    with pytest.raises(ValueError, match="a number or a schedule"):
        make("fast")


@pytest.mark.parametrize(
    ("rate", "advice"),
    [
        ({"name": "cosine_decay_schedule", "init_value": 9.0}, f"a smaller --config.{RATE}.init_value (it is 9)."),
        ({"name": "warmup_cosine_decay_schedule", "init_value": 0.0, "peak_value": 5.0}, "peak_value (it is 5)."),
        ({"name": "lab:mine", "top": 9.0}, f"smaller rates: the schedule --config.{RATE}.name=lab:mine."),
    ],
)
def test_the_advice_of_a_run_that_diverged_names_the_setting_of_the_schedule(rate, advice):
    config = {"client": {"optimizer": {"name": "sgd", "learning_rate": rate}}}
    assert explanation({"round": 5, "test_loss": 1e9}, 2.3, 0, config).endswith(advice)
