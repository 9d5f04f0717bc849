"""The metric by which runs are compared: whose, on which rows, in which direction."""

import pytest

from fedjax8.errors import UserError
from fedjax8.results.measure import Measure, logged, measure_of
from fedjax8.results.runs import read_run

REGRESSION = {"name": "regression", "metric": "mae", "directions": {"loss": "lower", "mae": "lower", "hits": "higher"}}
LINE = {"round": 1, "uplink_bytes": 1, "downlink_bytes": 1, "train_loss": 2.0, "padding": 0.5}


@pytest.fixture
def read(tmp_path, write_folder):
    def make(name, metrics, **document):
        return read_run(write_folder(tmp_path / name, {"seed": 0}, [LINE | dict.fromkeys(metrics, 0.5)], **document))

    return make


@pytest.fixture
def classified(read):
    return read("classified", ["test_accuracy", "test_loss", "validation_accuracy"])


@pytest.fixture
def regressed(read):
    return read("regressed", ["test_mae", "test_loss", "test_hits", "test_odd"], task=REGRESSION)


def test_by_default_it_is_the_first_metric_of_the_runs_task(classified, regressed):
    assert measure_of([classified]) == ("accuracy", False, "test_accuracy", "test_accuracy")
    assert measure_of([regressed, regressed]) == ("mae", True, "test_mae", "test_mae")


def test_runs_of_different_first_metrics_need_one_that_is_named(classified, regressed):
    with pytest.raises(
        UserError,
        match=r"different metrics .*classified by accuracy, .*regressed by mae.*--metric; all have loss, train_loss$",
    ):
        measure_of([classified, regressed])
    assert measure_of([classified, regressed], "loss") == ("loss", True, "test_loss", "test_loss")


def test_a_metric_can_be_named_with_and_without_its_rows(classified):
    assert measure_of([classified], "test_loss") == ("loss", True, "test_loss", "test_loss")
    chosen = ("accuracy", False, "validation_accuracy", "test_accuracy")
    assert measure_of([classified], "accuracy", on="validation") == chosen
    assert measure_of([classified], "validation_accuracy") == chosen
    assert measure_of([classified], "test_accuracy", on="validation") == chosen
    assert measure_of([classified], "train_loss") == ("train_loss", True, "train_loss", "train_loss")


def test_a_metric_that_no_run_has_is_an_error_that_lists_those_there_are(classified):
    with pytest.raises(
        UserError, match="'acuracy' on test rows; there are accuracy, loss, train_loss; did you mean 'acc"
    ):
        measure_of([classified], "acuracy")
    with pytest.raises(UserError, match=r"'loss' on validation rows; there are accuracy, train_loss.*validation=0\.1"):
        measure_of([classified], "loss", on="validation")
    assert set(logged([classified], "test").values()) == {"accuracy", "loss", "train_loss"}


def test_the_task_declares_directions_and_others_need_to_be_given(regressed, read):
    assert measure_of([regressed], "hits").lower is False
    with pytest.raises(
        UserError, match="whether odd is better high or low is not known; give --direction=higher or lower"
    ):
        measure_of([regressed], "odd")
    assert measure_of([regressed], "odd", "lower").lower is True
    contrary = read("contrary", ["test_hits"], task=REGRESSION | {"directions": {"hits": "lower"}})
    with pytest.raises(UserError, match="hits is better high in some runs' task, low in others'"):
        measure_of([regressed, contrary], "hits")
    with pytest.raises(UserError, match="direction='up'; give one of auto, higher, lower"):
        measure_of([regressed], direction="up")
    with pytest.raises(UserError, match="on='train'; give one of test, validation"):
        measure_of([regressed], on="train")


def test_a_margin_is_a_difference_of_metrics_of_at_most_1_and_a_share_of_others():
    assert Measure("accuracy").distance(0.01, 0.9) == 0.01
    assert Measure("auc").distance(0.01, 0.9) == 0.01
    assert Measure("mae", True).distance(0.01, -20.0) == 0.2
    assert [Measure(m).margin_in_words(0.025) for m in ("accuracy", "auc", "mae")] == ["2.5 points", "0.025", "2.5%"]
