"""Objects shown in a line and as a table: facts about them, escaped, without a device or an array's content."""

import optax
import pytest

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, simulate, tasks
from fedjax8.display import as_html, in_a_line
from fedjax8.exchange.ledger import Ledger
from fedjax8.types import Channel


@pytest.fixture(scope="module")
def objects():
    dataset = data.digits()
    clients = data.federate(dataset, data.iid(), 50)
    model = adapters.inputs(adapters.qat(models.mlp((4,))), dataset.mean, dataset.std)
    local = local_training(model, optax.sgd(0.1), data.batch_plan(10, epochs=2))
    run = simulate(algorithms.fedavg(local), clients, cohort_size=10, uplink=codecs.fp8(), downlink=codecs.none())
    return {"dataset": dataset, "clients": clients, "model": model, "run": run, "state": run.init()}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dataset", ["Dataset(digits", "1,438 rows of x uint8 [8, 8, 1], y int32", "classes 10"]),
        ("clients", ["FederatedData(clients 50", "28 to 29"]),
        ("model", ["Model(", "cross_entropy", "float32"]),
        (
            "run",
            [
                "Simulation(round training_client, averaging_server",
                "cohort 10",
                "participation uniform",
                "uplink fp8",
                "downlink as_it_is",
            ],
        ),
        ("state", ["SimulationState(rounds 0", "uplink bytes 0"]),
    ],
)
def test_objects_say_what_they_hold(objects, name, parts):
    text, table = repr(objects[name]), objects[name]._repr_html_()
    for part in parts:
        assert part in text
    assert table.startswith("<table>") and "array(" not in text and "<locals>" not in text and len(text) < 300


def test_a_ledger_shows_its_totals():
    state = Channel("up", "model", 10, 40)
    text = repr(Ledger().add({state: 300}))
    assert text == "Ledger(uplink bytes 3,000, downlink bytes 0, float32 bytes 12,000, messages 300, saving 4.00x)"


def test_a_task_names_its_metrics():
    assert repr(tasks.regression()) == "Task(regression, targets values, metrics mae, rmse)"


def test_tables_are_escaped_and_leave_out_what_is_not_there():
    assert "<script>" not in as_html("a", {"b": "<script>"}) and "&lt;script&gt;" in as_html("a", {"b": "<script>"})
    assert in_a_line("A", {"b": None, "c": "", "d_e": 1234}) == "A(d e 1,234)"
