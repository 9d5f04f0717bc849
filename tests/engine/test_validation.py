"""A run with a validation part: what is evaluated, written and refused."""

import json

import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.build import build
from fedjax8.config import base_config, override
from fedjax8.errors import UserError
from fedjax8.introduction import validation_words
from fedjax8.running.runner import run
from fedjax8.running.schedule import Schedule


def test_validation_rows_are_evaluated_beside_the_test_rows_and_stand_in_log_and_summary(toys, tmp_path):
    """A model of one number, f(x) = (x - b)^2 / 2 a row: each loss is known from x."""
    sim = toys.build(fedavg, toys.clients([1.0, 1.0], [0.0, 1.0]), epochs=1)
    rows = {"a": np.ones(2, np.float32), "b": np.array([2.0, 4.0], np.float32)}
    test = {"a": np.ones(1, np.float32), "b": np.zeros(1, np.float32)}
    outcome = run(sim, test, Schedule(3, 2, 10), workdir=tmp_path / "a", validation=rows)
    lines = [json.loads(text) for text in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    x, xs = 0.0, []
    for _ in range(3):
        x += toys.LEARNING_RATE * (0.5 - x)  # one step of each client, averaged
        xs.append(x)
    assert ["validation_loss" in line for line in lines] == [False, True, True]
    for line, x in list(zip(lines, xs, strict=True))[1:]:
        assert line["validation_loss"] == pytest.approx(((x - 2) ** 2 + (x - 4) ** 2) / 4, rel=1e-6)
        assert line["test_loss"] == pytest.approx(x**2 / 2, rel=1e-5)
    assert outcome.summary["validation_loss"] == lines[-1]["validation_loss"]


def built(*assignments):
    config = base_config()
    override(config, list(assignments))
    return build(config)


def test_a_config_holds_out_a_share_of_rows_or_of_clients():
    whole, rows, clients = (
        built(),
        built(("validation", "0.1")),
        built(("validation", "0.1"), ("validation_of", "clients")),
    )
    total = whole.simulation.data.num_examples
    for experiment in (rows, clients):
        assert len(experiment.validation["y"]) + experiment.simulation.data.num_examples == total
    assert whole.validation is None and clients.simulation.data.num_clients == 45
    assert 0.05 * total < len(rows.validation["y"]) < 0.15 * total


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([("validation_of", "clients")], r"config\.validation_of=clients changes nothing without a share"),
        ([("validation", "0.95")], r"config\.validation is 0\.95, but must be at most 0\.9"),
        (
            [("validation", "0.5"), ("validation_of", "clients"), ("cohort_size", "30")],
            r"cohort_size is 30, but must be between 1 and the number of clients, 25",
        ),
        ([("validation", "0.1"), ("partition.name", "windows")], r"config\.validation: validation needs rows that"),
    ],
)
def test_a_validation_part_that_cannot_be_is_one_sentence(assignments, message):
    with pytest.raises(UserError, match=message) as error:
        built(*assignments)
    assert len(error.value.mistakes) == 1


def test_the_accountant_counts_the_rows_that_are_trained_on_and_the_run_says_what_validation_rows_are():
    """Without subsampling within a client more rows a client mean a smaller epsilon, so fewer mean a larger one."""
    private = (
        ("privacy.name", "dp_sgd"),
        ("privacy.noise_multiplier", "1.0"),
        ("privacy.delta", "1e-3"),
        ("rounds", "3"),
    )
    private += ("input_mean", "0.5"), ("input_std", "0.5"), ("adapter.name", "none")
    private += ("partition.name", "iid"), ("model.hidden", "(4,)")
    whole, held = built(*private), built(*private, ("validation", "0.5"))
    after_3 = [e.simulation.algorithm.privacy(3)["epsilon"] for e in (whole, held)]
    assert after_3[0] < after_3[1]
    rows = len(held.validation["y"])
    assert f"{rows:,} rows held out for validation, of rows; they are outside of epsilon" in validation_words(held)
    assert validation_words(whole) == ""
