"""FedProx: its limit with exact solves, without a pull, and with a strong one."""

import functools

import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedprox import fedprox

FLOAT32 = 2e-6  # a few units in the last place near 1


def test_fedprox_with_exact_solves_settles_at_eight_thirteenths(toys):
    sim = toys.build(functools.partial(fedprox, mu=1.0), toys.q2(), steps=200)
    assert toys.trajectory(sim, 40)[-1] == pytest.approx(8 / 13, abs=FLOAT32)


def test_fedprox_without_pull_is_fedavg_bit_for_bit(toys):
    plain, prox = (
        toys.trajectory(toys.build(make, toys.q2(), steps=5), 10)
        for make in (fedavg, functools.partial(fedprox, mu=0.0))
    )
    assert plain == prox


def test_fedprox_with_a_strong_pull_holds_the_model(toys):
    sim = toys.build(functools.partial(fedprox, mu=9.0), toys.q2(), start=0.0, steps=300)
    moved = toys.trajectory(sim, 1)[0]  # the exact solve moves client 2 to 4/13 and client 1 not at all
    assert moved == pytest.approx(0.5 * 4 / 13, abs=FLOAT32)


@pytest.mark.parametrize("settings", [{"mu": -1.0}, {"mu": float("inf")}])
def test_settings_out_of_range_are_refused(toys, settings):
    with pytest.raises(ValueError, match=r"must|need"):
        toys.build(functools.partial(fedprox, **settings), toys.q2(), steps=1)
