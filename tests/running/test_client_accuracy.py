"""What a run says of clients' own models: when, in the log, in `clients.json`; and what it refuses."""

import json
import types

import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.build import build
from fedjax8.config import base_config, override
from fedjax8.data.federated import Dataset, FederatedData
from fedjax8.engine.client_evaluation import ClientScores
from fedjax8.errors import UserError
from fedjax8.running.client_accuracy import own_models
from fedjax8.running.runner import run
from fedjax8.running.schedule import Pace, Schedule

NEVER = {"every": 0, "clients": 1000, "fine_tune_steps": 0}


def stub(accuracy, without_rows=0, asked=None, privacy=lambda rounds: {}):
    """A simulation of three clients with two labels whose own models are this good."""
    columns = {"x": np.zeros((6, 1), np.float32), "y": np.int32([0, 0, 1, 1, 1, 0])}
    data = FederatedData.from_owners(columns, np.int32([0, 0, 1, 1, 2, 2]), 3)

    def evaluate_clients(state, ids, held, fine_tune_steps):
        if asked is not None:
            asked.append((ids.tolist(), fine_tune_steps))
        metrics = {"loss": np.full(len(accuracy), 0.5)} | ({"accuracy": np.array(accuracy)} if accuracy[0] >= 0 else {})
        return ClientScores(np.arange(len(accuracy)), np.full(len(accuracy), 2), metrics, without_rows)

    algorithm = types.SimpleNamespace(privacy=privacy)
    simulation = types.SimpleNamespace(
        data=data, seed=0, num_clients=3, evaluate_clients=evaluate_clients, algorithm=algorithm
    )
    return simulation, Dataset(columns, columns, 2, (0.0,), (1.0,), "hand made")


def test_the_log_and_the_file_say_how_clients_are_served(tmp_path):
    asked = []
    models = own_models(*stub([1.0, 0.5], 1, asked), NEVER | {"every": 5, "fine_tune_steps": 2})
    state = types.SimpleNamespace(round=5)
    assert models.line(state) == pytest.approx(
        {
            "personal_accuracy": 0.75,
            "personal_deviation": 0.25,
            "personal_worst_tenth": 0.5,
            "personal_fairness": 1.5**2 / (2 * 1.25),
            "personal_loss": 0.5,
            "personal_clients": 2,
            "personal_without_rows": 1,
        }
    )
    models.write(state, tmp_path)
    assert json.loads((tmp_path / "clients.json").read_text()) == {
        "rows": "dealt",
        "clients": [0, 1],
        "counts": [2, 2],
        "metric": "accuracy",
        "accuracy": [1.0, 0.5],
        "without_rows": 1,
        "fine_tune_steps": 2,
    }
    assert asked == [([0, 1, 2], 2)]  # once for a round
    models.line(types.SimpleNamespace(round=10))
    assert len(asked) == 2


def test_a_flag_goes_before_the_number_of_clients_in_the_settings():
    asked = []
    own_models(*stub([1.0], asked=asked), NEVER | {"clients": 3}, most=2).line(types.SimpleNamespace(round=1))
    assert asked == [([0, 2], 0)]


def test_nothing_is_evaluated_unless_asked_for_and_settings_that_do_nothing_are_refused():
    assert own_models(*stub([1.0]), NEVER) is None
    with pytest.raises(UserError, match="fine_tune_steps changes nothing"):
        own_models(*stub([1.0]), NEVER | {"fine_tune_steps": 3})


def test_a_number_of_clients_without_a_period_is_refused():
    config = base_config()
    override(config, [("evaluate_clients.clients", "5")])
    with pytest.raises(UserError, match=r"evaluate_clients\.clients=5 changes nothing without a period"):
        build(config)


def test_steps_beside_an_epsilon_are_refused_before_the_run_and_not_at_its_first_evaluation():
    simulation, dataset = stub([1.0], privacy=lambda rounds: {"epsilon": 1.0})
    with pytest.raises(UserError, match="fine_tune_steps are not accounted for"):
        own_models(simulation, dataset, NEVER | {"every": 5, "fine_tune_steps": 2})
    assert own_models(simulation, dataset, NEVER | {"every": 5}) is not None


def test_a_run_without_held_out_rows_or_accuracy_is_refused():
    simulation, dataset = stub([-1.0])
    with pytest.raises(UserError, match="no metric called accuracy"):
        own_models(simulation, dataset, NEVER, most=1).line(types.SimpleNamespace(round=1))
    other = dataset._replace(num_classes=3, test={"x": np.zeros((1, 1), np.float32), "y": np.int32([2])})
    with pytest.raises(UserError, match="none of the 3 clients that would be evaluated has held-out rows"):
        own_models(simulation, other, NEVER, most=3)


def test_clients_are_evaluated_at_a_period_of_their_own_and_at_the_end(toys):
    """Every 2 of 5 rounds, while the test set is looked at every 3."""
    sim = toys.build(fedavg, toys.clients([1.0, 1.0], [1.0, 2.0]), steps=1)
    test, seen = {"a": np.float32([1]), "b": np.float32([1])}, []

    def clients(state):
        seen.append(state.round)
        return {"personal_accuracy": state.round / 10}

    schedule = Schedule(rounds=5, eval_every=3, checkpoint_every=100, clients_every=2)
    summary = run(sim, test, schedule, clients=clients).summary
    assert seen == [2, 4, 5] and summary["personal_accuracy"] == 0.5
    seen.clear()
    run(sim, test, schedule._replace(clients_every=0), clients=clients)
    assert seen == []


def test_no_call_goes_beyond_a_round_in_which_clients_are_evaluated():
    pace = Pace(Schedule(rounds=100, eval_every=50, checkpoint_every=100, clients_every=7))
    for _ in range(2):
        pace.learn(64, 0.001)
    assert [pace.count(done) for done in (0, 3, 7, 48, 99)] == [7, 4, 7, 1, 1]
    free = Pace(Schedule(rounds=100, eval_every=50, checkpoint_every=100))
    for _ in range(2):
        free.learn(64, 0.001)
    assert free.count(0) == 50


def test_held_out_rows_are_dealt_by_the_seed_of_the_split_and_clients_go_by_name():
    simulation, dataset = stub([1.0, 0.5])
    many = {"x": np.zeros((60, 1), np.float32), "y": np.int32(np.arange(60) % 2)}
    dataset = dataset._replace(test=many)

    def orders(seed, split):
        simulation.seed = seed
        return own_models(simulation, dataset, NEVER, 3, split).held.clients.order.tolist()

    assert orders(1, 5) == orders(2, 5) == orders(5, None) != orders(1, None)
    simulation.evaluate_clients = lambda *_: ClientScores(
        np.array([2]), np.array([2]), {"loss": np.ones(1), "accuracy": np.ones(1)}, 0, ("eve",)
    )
    document = own_models(simulation, dataset, NEVER, 3).document(types.SimpleNamespace(round=1))
    assert document["clients"] == [2] and document["names"] == ["eve"]
