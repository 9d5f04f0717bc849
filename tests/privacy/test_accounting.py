"""Epsilons against published numbers, closed forms and formulas written out."""

import itertools
import math
import sys

import numpy as np
import optax
import pytest
from scipy import special, stats

from fedjax8 import privacy
from fedjax8.algorithms.dp_fedavg import dp_fedavg
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.errors import UserError
from fedjax8.local import local_training
from fedjax8.participation import sample_cohort
from fedjax8.privacy import accounting
from fedjax8.privacy.accounting import ExampleSteps, Facts, calibrate, cohort, epsilon, rate, rdp

MNIST = rate(256 / 60_000)


@pytest.mark.parametrize(("noise", "epochs", "published"), [(1.3, 15, 1.19), (1.1, 60, 3.01)])
def test_the_published_epsilons_of_mnist_come_out(noise, epochs, published):
    """TF-Privacy's tutorial, whose conversion was the older and looser epsilon = rdp - log(delta) / (order - 1)."""
    steps, orders = epochs * 60_000 // 256, np.asarray(accounting.ORDERS)
    older = np.min(steps * rdp(noise, MNIST) - math.log(1e-5) / (orders - 1))
    assert older == pytest.approx(published, abs=0.005)
    assert 0.75 * published < epsilon(noise, 1e-5, steps=steps, sampling=MNIST) < published


def gaussian_delta(epsilon, deviation):
    """Balle and Wang 2018 (arXiv 1805.06530), equation 6, for sensitivity 1."""
    a, b = 0.5 / deviation, epsilon * deviation
    return stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b)


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 1), (5.0, 4)])
def test_without_sampling_epsilon_is_that_of_the_gaussian(noise, steps):
    alone = noise / math.sqrt(steps)  # so many Gaussians are one
    tight = epsilon(noise, 1e-5, steps=steps, sampling=rate(1), accountant="pld")
    assert gaussian_delta(tight, alone) == pytest.approx(1e-5, rel=1e-2)
    loose = epsilon(noise, 1e-5, steps=steps, sampling=rate(1))
    assert tight < loose < 1.15 * tight
    assert epsilon(noise, 1e-5, steps=steps, sampling=cohort(7, 7)) == loose


def test_a_poisson_sample_has_the_divergence_of_the_mixture():
    """Mironov et al. 2019, section 3.3: the binomial sum for a whole order."""
    q, z = 0.1, 1.2
    for order in (2, 3, 16):
        k = np.arange(order + 1)
        terms = special.comb(order, k) * (1 - q) ** (order - k) * q**k * np.exp((k * k - k) / (2 * z * z))
        found = rdp(z, rate(q))[accounting.ORDERS.index(order)]
        assert found == pytest.approx(math.log(terms.sum()) / (order - 1), rel=1e-6)


def test_a_cohort_costs_more_than_a_poisson_sample_and_no_more_than_everyone():
    costs = [epsilon(2.0, 1e-5, steps=30, sampling=s) for s in (rate(0.02), cohort(20, 1000), rate(1))]
    assert costs == sorted(costs)
    assert costs[0] < 0.5 * costs[1] and costs[1] < 0.5 * costs[2]
    assert np.all(rdp(2.0, cohort(9, 10)) <= rdp(2.0, rate(1)))


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta():
    def cost(noise=1.0, delta=1e-5, steps=100, q=0.01):
        return epsilon(noise, delta, steps=steps, sampling=rate(q))

    for grows in (
        [cost(steps=n) for n in (0, 1, 10, 1000)],
        [cost(q=q) for q in (0.001, 0.01, 0.1, 1)],
        [cost(noise=z) for z in (4.0, 2.0, 1.0, 0.5, 0.0)],
        [cost(delta=d) for d in (1e-2, 1e-5, 1e-8)],
    ):
        assert all(a < b for a, b in itertools.pairwise(grows))
    assert cost(steps=0) == 0
    assert cost(noise=0.0) == math.inf


def test_composing_privacy_losses_is_tighter_than_renyi():
    tight, loose = (epsilon(1.0, 1e-5, steps=20, sampling=rate(0.01), accountant=a) for a in ("pld", "rdp"))
    assert 0.3 * loose < tight < loose


@pytest.mark.parametrize("sampling", [rate(0.01), rate(1)])
def test_calibration_gives_the_least_noise(sampling):
    noise = calibrate(2.0, 1e-5, steps=50, sampling=sampling)
    assert epsilon(noise, 1e-5, steps=50, sampling=sampling) <= 2.0
    assert epsilon(0.997 * noise, 1e-5, steps=50, sampling=sampling) > 2.0


def facts(sizes, *, cohort_size, plan, rounds=10, seed=3):
    owners = np.repeat(np.arange(len(sizes)), sizes)
    data = FederatedData.from_owners({"x": np.zeros(len(owners), np.float32)}, owners, len(sizes))
    return Facts(data, cohort_size, rounds, seed, plan)


def test_clients_are_charged_for_the_rounds_they_took_part_in():
    sizes, plan = [3, 10, 10, 40, 0], batch_plan(5, epochs=2)
    run = facts(sizes, cohort_size=2, plan=plan)
    spent = ExampleSteps(run, "poisson")
    for rounds in (1, 7, 10, 4):  # also back
        taken = [sum(c in sample_cohort(3, r, 5, 2) for r in range(rounds)) for c in range(5)]
        steps = [2 * -(-n // 5) * t for n, t in zip(sizes, taken, strict=True)]
        rates = [min(1.0, 5 / max(n, 1)) for n in sizes]
        costs = [epsilon(1.0, 1e-5, steps=s, sampling=rate(q)) for q, s in zip(rates, steps, strict=True) if s]
        assert spent.epsilon(1.0, 1e-5, rounds) == max(costs, default=0.0)
    assert spent.steps(0) == []


def test_the_smallest_client_loses_most():
    run = facts([20, 40, 80], cohort_size=3, plan=batch_plan(10, steps=4))
    assert ExampleSteps(run, "poisson").steps(5) == [(0.5, 20)]


def test_shuffled_epochs_are_a_gaussian_step_each():
    assert ExampleSteps(facts([20, 40], cohort_size=2, plan=batch_plan(10, epochs=3)), "shuffled").steps(2) == [(1, 6)]
    assert ExampleSteps(facts([20, 40], cohort_size=2, plan=batch_plan(10, steps=5)), "shuffled").steps(2) == [(1, 6)]


def test_many_sizes_are_charged_for_at_least_their_own():
    sizes, plan = np.arange(10, 210), batch_plan(10, epochs=1)
    front = ExampleSteps(facts(sizes, cohort_size=200, plan=plan), "poisson").steps(1)
    assert len(front) <= accounting.CLASSES
    for n in sizes:
        assert any(q >= 10 / n and steps >= -(-n // 10) for q, steps in front)


def test_clients_that_share_rows_are_refused():
    columns, twos = {"x": np.zeros(4, np.float32)}, np.array([2, 2], np.int32)
    for order, starts in ((None, [1, 2]), (np.array([0, 1, 1, 2], np.int32), [0, 2])):
        data = FederatedData(columns, order, np.array(starts), twos)
        with pytest.raises(UserError, match="belongs to 2 clients"):
            ExampleSteps(Facts(data, 1, 1, 0, batch_plan(1, epochs=1)), "poisson")


def test_the_log_tells_epsilon_after_every_round(toys):
    data, plan = toys.clients([1.0, 1.0], [0.0, 1.0], [4, 8]), batch_plan(2, epochs=1)
    gradient = privacy.dp_sgd(1.0, 2.0, delta=1e-3, facts=Facts(data, 2, 3, 0, plan))

    def make(_):
        local = local_training(toys.quadratic(), optax.sgd(0.1), plan, gradient)
        return privacy.accounted(fedavg(local), gradient)

    sim = toys.build(make, data, epochs=1)
    _, lines = sim.run_rounds(sim.init(), 3)
    wanted = [
        max(epsilon(2.0, 1e-3, steps=s * r, sampling=rate(q)) for q, s in ((0.5, 2), (0.25, 4))) for r in (1, 2, 3)
    ]
    assert [line["epsilon"] for line in lines] == wanted
    assert all(line["delta"] == 1e-3 for line in lines)


def test_examples_have_names_of_their_own_beside_clients(toys):
    algorithm = fedavg(local_training(toys.quadratic(), optax.sgd(0.1), batch_plan(1, epochs=1)))
    users = algorithm._replace(privacy=lambda rounds: {"epsilon": 1.0 * rounds, "delta": 0.1})
    gradient = privacy.none()._replace(privacy=lambda rounds: {"epsilon": 2.0 * rounds, "delta": 0.2})
    assert privacy.accounted(algorithm, gradient).privacy(2) == {"epsilon": 4.0, "delta": 0.2}
    assert privacy.accounted(users, gradient).privacy(2) == {
        "epsilon": 2.0,
        "delta": 0.1,
        "example_epsilon": 4.0,
        "example_delta": 0.2,
    }


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    with pytest.raises(UserError, match=r"fedjax8\[privacy\]"):
        epsilon(1.2345, 1e-5, steps=1, sampling=rate(0.5))


def test_a_missing_library_ends_a_run_before_it_has_begun(toys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    run = facts([20, 20, 20], cohort_size=2, plan=batch_plan(5, epochs=1))
    local = local_training(toys.quadratic(), optax.sgd(0.1), run.plan)
    with pytest.raises(UserError, match=r"fedjax8\[privacy\]"):
        privacy.dp_sgd(1.0, 2.0, facts=run)
    with pytest.raises(UserError, match=r"fedjax8\[privacy\]"):
        dp_fedavg(local, noise_multiplier=1.0, facts=run)
    # Full batches and full cohorts are Gaussian steps, whose accounting needs no library.
    everyone = facts([5, 5, 5], cohort_size=3, plan=batch_plan(5, epochs=1))
    assert dp_fedavg(local, noise_multiplier=1.0, facts=everyone).privacy(1)["epsilon"] > 0
    privacy.dp_sgd(1.0, 2.0, facts=everyone)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rate(0),
        lambda: rate(1.5),
        lambda: cohort(0, 5),
        lambda: cohort(6, 5),
        lambda: epsilon(1.0, 0.0, steps=1, sampling=rate(1)),
        lambda: epsilon(-1.0, 1e-5, steps=1, sampling=rate(1)),
        lambda: epsilon(1.0, 1e-5, steps=1, sampling=rate(1), accountant="gdp"),
        lambda: epsilon(1.0, 1e-5, steps=1, sampling=cohort(1, 5), accountant="pld"),
        lambda: calibrate(0.0, 1e-5, steps=1, sampling=rate(1)),
        lambda: calibrate(1e-9, 1e-5, steps=10**6, sampling=rate(1)),
    ],
)
def test_impossible_questions_are_refused(call):
    with pytest.raises(ValueError, match=r"must|knows|no noise"):
        call()
