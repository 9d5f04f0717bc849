"""Training without communication: every client by itself, and no byte."""

import numpy as np
import pytest

from fedjax8.algorithms.local_only import local_only
from fedjax8.attacks import attacked
from fedjax8.attacks.sign_flip import sign_flip
from fedjax8.errors import UserError

ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0, 4.0, -2.0])
MEANS = np.array([np.mean(rows) for rows in ROWS])


def test_each_client_goes_its_own_way_and_nothing_is_sent(toys):
    """Two full-batch steps at 0.1: x - b shrinks by 0.81 a round."""
    sim = toys.build(local_only, toys.with_rows(ROWS), start=7.0, steps=2, batch_size=3)
    state, lines = sim.run_rounds(sim.init(), 3)
    own = np.asarray(state.clients.arrays()["algorithm"].params["x"])
    np.testing.assert_allclose(own, MEANS + (7.0 - MEANS) * 0.9**6, rtol=1e-6)
    assert sim.discover() == [] and state.ledger.sent == {}
    assert (lines[-1]["uplink_bytes"], lines[-1]["downlink_bytes"]) == (0, 0)
    assert (lines[-1]["clients"], lines[-1]["excluded"]) == (3, 0)
    assert float(sim.variables(state).params["x"]) == 7.0  # nobody told the server anything


def test_who_does_not_take_part_and_who_is_not_finite_stays_as_it_was(toys):
    data = toys.with_rows(([np.nan], [2.0], [3.0], [4.0]))
    sim = toys.build(local_only, data, start=7.0, steps=1, cohort_size=4)
    state, line = sim.run_round(sim.init())
    own = np.asarray(state.clients.arrays()["algorithm"].params["x"])
    assert own[0] == 7.0 and (own[1:] != 7.0).all()
    assert (line["clients"], line["excluded"], line["excluded_clients"]) == (3, 1, [0])
    few = toys.build(local_only, toys.with_rows(ROWS), start=7.0, steps=1, cohort_size=1)
    state, _ = few.run_round(few.init())
    assert np.count_nonzero(np.asarray(state.clients.arrays()["algorithm"].params["x"]) != 7.0) == 1


def test_attackers_have_nothing_to_change(toys):
    make = lambda local: attacked(local_only(local), sign_flip(0.5))
    with pytest.raises(UserError, match="send nothing that an attacker could change; use label_flip"):
        toys.build(make, toys.q2(), steps=1).discover()
