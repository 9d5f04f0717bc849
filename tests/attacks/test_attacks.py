"""Clients that attack: what they send by hand, who they are, and what that does to a mean and to a median."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import attacks
from fedjax8.algorithms.aggregators.median import median
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.parts import ClientOutput, ServerOutput, from_parts
from fedjax8.attacks.little_is_enough import largest_z
from fedjax8.data.batches import batch_plan, take_batch
from fedjax8.data.federated import FederatedData
from fedjax8.errors import UserError
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.lookup import component_names, find
from fedjax8.types import Attack, Colluders

FLOAT32 = 1e-6


def run(toys, attack, b, rounds=1, *, executor=None, cohort_size=None, **settings):
    """A client with optimum b moves by 0.1 (b - x) in its one step; x starts at 0."""
    make = lambda local: attacks.attacked(fedavg(local, **settings), attack)
    sim = toys.build(make, toys.clients([1.0] * len(b), b), steps=1, executor=executor, cohort_size=cohort_size)
    state = sim.init()
    for _ in range(rounds):
        state, metrics = sim.run_round(state)
    return float(sim.variables(state).params["x"]), metrics


def with_labels(data, y):
    return FederatedData(data.columns | {"y": np.int32(y)}, data.order, data.starts, data.sizes)


@pytest.mark.parametrize("payload", ["params", "update"])
def test_a_turned_sign_cancels_an_equal_change_whatever_is_sent(toys, payload):
    x, metrics = run(toys, attacks.sign_flip(count=1), [3.0, 3.0], 2, payload=payload)
    assert x == pytest.approx(0.0, abs=FLOAT32)
    assert (metrics["attackers"], metrics["clients"], metrics["excluded"]) == (1, 2, 0)
    assert metrics["uplink_bytes"] == 2 * 2 * 4


def test_colluders_turn_the_honest_mean_round(toys):
    """Moves of 0.1, 0.2 and 0.3 have mean 0.2; the attacker's own, 10, is not sent. On two devices as on one."""
    attack = attacks.inner_product(scale=0.5, count=1)
    for executor in (loop(), pmap(1, 2)):
        x, _ = run(toys, attack, [100.0, 1.0, 2.0, 3.0], executor=executor)
        assert x == pytest.approx((0.1 + 0.2 + 0.3 - 0.1) / 4, rel=1e-5)


def test_colluders_know_the_spread_of_every_value():
    known = Colluders({"x": jnp.float32([1, 2])}, {"x": jnp.float32([0.5, 0])}, jnp.float32(26), jnp.float32(24))
    sent = attacks.little_is_enough(z=2.0).send(None, None, known)["x"]
    np.testing.assert_allclose(sent, [0.0, 2.0])
    # 50 workers, 24 of them corrupted: 2 supporters are needed, and 24 of 26 honest ones are nearer to the mean.
    assert float(largest_z(known)) == pytest.approx(statistics.NormalDist().inv_cdf(24 / 26), rel=1e-5)


def test_colluders_measure_the_spread_in_a_round(toys):
    x, _ = run(toys, attacks.little_is_enough(z=1.5, count=1), [100.0, 1.0, 2.0, 3.0])
    assert x == pytest.approx((0.6 + 0.2 - 1.5 * np.std([0.1, 0.2, 0.3])) / 4, rel=1e-4)


def test_noise_has_its_deviation_and_is_new_every_time():
    attack, like = attacks.gaussian(deviation=3.0), {"a": jnp.zeros(20000), "b": jnp.zeros(20000)}
    one, two = (attack.send(jax.random.key(i), like, None) for i in range(2))
    for leaf in (*one.values(), *two.values()):
        assert float(jnp.std(leaf)) == pytest.approx(3.0, rel=5 / np.sqrt(2 * 20000))  # five standard errors
    for x, y in ((one["a"], one["b"]), (one["a"], two["a"])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(20000)


def test_labels_are_flipped_in_the_attackers_batches_alone(toys):
    def make(local):
        def client(start, extra, memory, rows, key, round_number):
            y = take_batch(batch_plan(3, epochs=1), rows, None, jnp.int32(0))["y"]
            report = {f"y{i}": jnp.sum(y == i) for i in range(-1, 4)}
            return ClientOutput({"update": start.params}, jnp.float32(1), start, (), report)

        keep = lambda state, mean, key: ServerOutput(state.variables.params)
        algorithm = from_parts(local, client=client, server=keep)
        return attacks.attacked(algorithm, attacks.label_flip(num_classes=4, count=1))

    data = toys.clients([1.0] * 2, [1.0] * 2, [3, 3])
    data = with_labels(data, [0, 3, -1, 0, 1, 1])
    sim = toys.build(make, data, epochs=1)
    metrics = sim.run_round(sim.init())[1]
    # 0, 3, -1 become 3, 0, -1; the honest client's 0, 1, 1 stay.
    assert [metrics[f"y{i}"] for i in range(-1, 4)] == [1, 2, 2, 0, 1]


def test_attackers_break_the_mean_and_not_the_median(toys):
    b = [1.0, 0.8, 1.2, 1.1, 0.9, 1.0, 1.05]
    attack = attacks.sign_flip(scale=10.0, count=3)  # 3 of 7
    x, _ = run(toys, attack, b, 60)
    assert abs(x) > 100
    x, _ = run(toys, attack, b, 60, aggregate=median(), cohort_size=7)
    assert x == pytest.approx(1.0, abs=0.25)


def test_a_share_of_all_clients_attacks_and_always_the_same_ones():
    ids = jnp.arange(1001)
    for share, want in ((0.2, 200), (0.0, 0), (1.0, 1000)):
        attack = attacks.sign_flip(share)
        found = np.asarray(attack.members(ids, 1000))
        assert found.sum() == want and not found[1000]  # number 1000 is padding
        np.testing.assert_array_equal(found[37:41], [attack.members(jnp.int32(i), 1000) for i in range(37, 41)])
    first, other = (np.asarray(attacks.sign_flip(0.2, seed=s).members(ids, 1000)) for s in (0, 1))
    assert (first & other).sum() < 80  # 40 expected, six standard deviations


def test_attackers_are_drawn_as_the_cohort_is(toys):
    _, metrics = run(toys, attacks.sign_flip(1.0), [1.0] * 9, cohort_size=4)
    assert metrics["attackers"] == 4


def test_an_algorithm_that_says_nothing_of_changes_is_refused_before_it_runs(toys):
    for attack, refused in ((attacks.sign_flip(), True), (attacks.label_flip(num_classes=2), False)):
        make = lambda local, attack=attack: attacks.attacked(fda(local, theta=1.0), attack)
        data = toys.clients([1.0] * 2, [1.0] * 2)
        data = with_labels(data, [0, 1])
        sim = toys.build(make, data, steps=1)
        if refused:
            with pytest.raises(UserError, match="does not say from which values its clients' messages start"):
                sim.discover()
        else:
            assert sim.discover()


def test_every_example_is_an_attack_and_settings_out_of_range_are_refused():
    for name in component_names("fedjax8.attacks"):
        factory = find(name, "fedjax8.attacks")
        assert all(isinstance(factory(**example), Attack) for example in factory.__globals__["EXAMPLES"])
    bad = (
        functools.partial(attacks.sign_flip, 1.5),
        functools.partial(attacks.sign_flip, count=-1),
        functools.partial(attacks.sign_flip, scale=0),
        functools.partial(attacks.gaussian, deviation=0),
        functools.partial(attacks.label_flip, num_classes=1),
        functools.partial(attacks.inner_product, scale=-1),
    )
    for make in bad:
        with pytest.raises(ValueError, match=r"must|need"):
            make()
