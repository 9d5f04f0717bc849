"""Epsilon is of the law that drew the clients: what is charged under each participation, and what is refused."""

import contextlib
import functools

import dp_accounting.rdp
import numpy as np
import pytest

from fedjax8 import participation, privacy
from fedjax8.algorithms.dp_fedavg import dp_fedavg
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.build import build
from fedjax8.config import base_config, override
from fedjax8.data.batches import batch_plan
from fedjax8.errors import UserError
from fedjax8.participation import Ask, poisson
from fedjax8.privacy.accounting import ORDERS, ExampleSteps, Facts

UNKNOWN = [participation.weighted(), participation.cyclic(), participation.overselect()]


def facts_of(data, cohort_size, drawn_by, rounds=10, seed=0, steps=1):
    return Facts(data, cohort_size, rounds, seed, batch_plan(1, steps=steps), drawn_by)


def poisson_cohort(r, num_clients, cohort_size, seed=0):
    return poisson().draw(Ask(seed, r, num_clients, cohort_size, None, None, None)).ids


def test_a_poisson_cohort_is_charged_as_one(toys):
    """Against the library: 7 of 100 clients in expectation, z = 1.2, 15 rounds."""
    data = toys.clients([1.0] * 100, [0.0] * 100)
    facts = facts_of(data, 7, poisson())
    sim = toys.build(
        functools.partial(dp_fedavg, noise_multiplier=1.2, delta=1e-4, facts=facts), data, cohort_size=7, steps=1,
        participation=poisson(),
    )  # fmt: skip
    accountant = dp_accounting.rdp.RdpAccountant(ORDERS)
    event = dp_accounting.PoissonSampledDpEvent(0.07, dp_accounting.GaussianDpEvent(1.2))
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, 15))
    told = sim.algorithm.privacy(15)
    assert told["epsilon"] == pytest.approx(accountant.get_epsilon(1e-4), rel=1e-6)
    uniform = dp_fedavg(
        sim.algorithm.local, noise_multiplier=1.2, delta=1e-4, facts=facts_of(data, 7, participation.uniform())
    )
    assert uniform.privacy(15)["epsilon"] > 2 * told["epsilon"]  # the bound for a fixed cohort, see `accounting`
    everyone = dp_fedavg(sim.algorithm.local, noise_multiplier=1.2, delta=1e-4, facts=facts_of(data, 100, poisson()))
    plain = dp_accounting.rdp.RdpAccountant(ORDERS)
    plain.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(1.2), 15))
    assert everyone.privacy(15)["epsilon"] == pytest.approx(plain.get_epsilon(1e-4), rel=1e-6)


def test_a_target_is_met_under_the_law_of_the_draws(toys):
    data = toys.clients([1.0] * 50, [0.0] * 50)
    local = toys.build(fedavg, data, steps=1).algorithm.local
    made = dp_fedavg(local, target_epsilon=4.0, delta=1e-3, facts=facts_of(data, 5, poisson()))
    assert 3.9 < made.privacy(10)["epsilon"] <= 4.0


@pytest.mark.parametrize("drawn_by", [*UNKNOWN, participation.power_of_choice()])
def test_epsilon_of_clients_is_refused_where_the_law_is_unknown(toys, drawn_by):
    data = toys.clients([1.0] * 8, [0.0] * 8)
    with pytest.raises(UserError, match="no law that an accountant knows"):
        toys.build(
            functools.partial(dp_fedavg, noise_multiplier=1.0, facts=facts_of(data, 3, drawn_by)), data, cohort_size=3,
            steps=1, participation=drawn_by,
        )  # fmt: skip


def test_accounting_for_others_than_those_who_are_drawn_is_refused(toys):
    data = toys.clients([1.0] * 8, [0.0] * 8)
    gradient = privacy.dp_sgd(noise_multiplier=1.0, facts=facts_of(data, 3, poisson()))
    clients = lambda facts: functools.partial(dp_fedavg, noise_multiplier=1.0, facts=facts)
    examples = lambda local: privacy.accounted(fedavg(local), gradient)
    run = functools.partial(toys.build, data=data, steps=1)
    assert run(clients(facts_of(data, 3, poisson())), cohort_size=3, participation=poisson())
    assert run(clients(facts_of(data, 3, participation.uniform())), cohort_size=3)
    assert run(examples, cohort_size=3, participation=poisson(), gradient=gradient)
    for wrong in (
        lambda: run(clients(facts_of(data, 3, participation.uniform())), cohort_size=3, participation=poisson()),
        lambda: run(clients(facts_of(data, 3, poisson())), cohort_size=3),
        lambda: run(clients(facts_of(data, 3, poisson())), cohort_size=4, participation=poisson()),
        lambda: run(clients(facts_of(data, 3, poisson(), seed=1)), cohort_size=3, participation=poisson()),
        lambda: run(examples, cohort_size=3, gradient=gradient),
    ):
        with pytest.raises(UserError, match="privacy is accounted for another seed"):
            wrong()


@pytest.mark.parametrize("drawn_by", [poisson(), *UNKNOWN])
def test_examples_are_charged_for_the_rounds_that_their_client_was_waited_for(toys, drawn_by):
    sizes = [2, 4, 4, 8, 6]
    data = toys.clients([1.0] * 5, [0.0] * 5, sizes)
    facts = Facts(data, 2, 10, 3, batch_plan(2, epochs=1), drawn_by)
    spent = ExampleSteps(facts, "shuffled")  # a step an epoch for everyone, so that only rounds count
    for rounds in (1, 6, 9):
        used = [drawn.ids[~drawn.lost] for drawn in map(facts.participants.drawn, range(rounds))]
        most = np.bincount(np.concatenate(used), minlength=5).max()
        assert spent.steps(rounds) == [(1.0, most)]
    if drawn_by is UNKNOWN[-1]:
        assert any(facts.participants.drawn(number).lost.any() for number in range(9))


def test_examples_are_not_accounted_for_where_their_losses_decide(toys):
    data = toys.clients([1.0] * 5, [0.0] * 5)
    for sampling in ("shuffled", "poisson"):
        with pytest.raises(UserError, match="this one reads the clients' losses"):
            ExampleSteps(facts_of(data, 2, participation.power_of_choice()), sampling)


@pytest.mark.parametrize("drawn_by", [poisson(), participation.overselect(2.0)])
def test_sums_are_divided_by_the_expected_number_of_clients(toys, drawn_by):
    """No noise; updates of 0.1 (b - x), clipped to 1."""
    b = [1.0, -2.0, 40.0, 8.0, -16.0, 32.0]
    make = functools.partial(dp_fedavg, clip=1.0, noise_multiplier=0.0)
    sim = toys.build(make, toys.clients([1.0] * 6, b), cohort_size=2, steps=1, participation=drawn_by)
    x, state = 0.0, sim.init()
    for r in range(5):
        ids, lost = sim.participants.drawn(r)[:2]
        x += sum(np.clip(0.1 * (b[i] - x), -1, 1) for i in ids[~lost]) / 2
        state, _ = sim.run_round(state)
        assert float(sim.variables(state).params["x"]) == pytest.approx(
            x, rel=2e-5
        )  # 6e-6 of the bound is given away, see `norms`


@pytest.mark.parametrize("noise", ["server", "clients"])
def test_the_server_adds_its_noise_in_rounds_that_nobody_is_in(toys, noise):
    """Clients without a gradient, two of 20 in expectation: every round is a draw of N(0, (z S / m)^2), of more where
    more than m clients add their shares. 96 rounds, five standard errors of a deviation."""
    make = functools.partial(dp_fedavg, clip=1.0, noise_multiplier=3.0, noise=noise)
    data = toys.clients([0.0] * 20, [0.0] * 20)
    sim = toys.build(make, data, cohort_size=2, steps=1, participation=poisson())
    state, counts, xs = sim.init(), [len(poisson_cohort(r, 20, 2)) for r in range(96)], [0.0]
    for _ in range(96):
        state, _ = sim.run_round(state)
        xs.append(float(sim.variables(state).params["x"]))
    steps, counts = np.diff(xs), np.array(counts)
    assert (counts == 0).sum() > 5
    for few in (counts == 0, (counts > 0) & (counts <= 2)):
        error = 5 / np.sqrt(2 * few.sum())
        assert np.std(steps[few]) / 1.5 == pytest.approx(1.0, abs=error)
    if noise == "clients":
        scaled = steps[counts > 2] / (1.5 * np.sqrt(counts[counts > 2] / 2))
        assert np.std(scaled) == pytest.approx(1.0, abs=5 / np.sqrt(2 * len(scaled)))


def config_with(*pairs):
    config = base_config()
    config.adapter.name = "none"
    override(config, [(f"participation.{name}" if "." not in name else name, value) for name, value in pairs])
    return config


def test_a_config_states_the_epsilon_of_its_participation():
    private = [("algorithm.name", "dp_fedavg"), ("algorithm.noise_multiplier", "1.0"), ("algorithm.delta", "1e-3")]
    made = build(config_with(("name", "poisson"), *private)).simulation
    expected = privacy.epsilon(1.0, 1e-3, steps=60, sampling=privacy.rate(10 / 50))
    assert made.algorithm.privacy(60) == {"epsilon": expected, "delta": 1e-3}
    with pytest.raises(UserError, match="no law that an accountant knows"):
        build(config_with(("name", "overselect"), *private))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("name", "overselect"), ("system.name", "lognormal")], "draws clients by how long they take"),
        ([("name", "buffered"), ("concurrency", "20"), ("system.name", "same")], "plans the arrivals of rounds"),
    ],
)
def test_no_epsilon_is_of_clients_whose_draws_ask_the_clock(pairs, message):
    """The accountant would charge those with the fewest steps, and others take part."""
    private = [("privacy.name", "dp_sgd"), ("privacy.clip", "1.0"), ("privacy.noise_multiplier", "1.0")]
    private += [("privacy.delta", "1e-3")]
    constants = [("input_mean", "0.3"), ("input_std", "0.4")]
    for drawn_by, refused in ((pairs, True), ([("name", "overselect")], False)):
        config = config_with(*drawn_by, *private)
        override(config, constants)
        with pytest.raises(UserError, match=message) if refused else contextlib.nullcontext():
            build(config)
