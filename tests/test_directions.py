"""Directions of metrics by their names, and their values as a person reads them."""

import math

import pytest

from fedjax8.directions import direction_of, in_words, is_bounded, is_percent, readable
from fedjax8.lookup import component_names
from fedjax8.tasks import metrics


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("accuracy", "higher"),
        ("float32_test_accuracy", "higher"),
        ("test_top5_accuracy", "higher"),
        ("validation_macro_f1", "higher"),
        ("test_auc", "higher"),
        ("validation_top_5", "higher"),
        ("stop_5", ""),
        ("r2", "higher"),
        ("test_loss", "lower"),
        ("test_mae", "lower"),
        ("test_rmse", "lower"),
        ("test_calibration_error", "lower"),
        ("validation_perplexity", "lower"),
        ("test_bits_per_token", "lower"),
        ("simulated_seconds", "lower"),
        ("waiting_share", "lower"),
        ("peak_rate", "lower"),
        ("wasted_bytes", "lower"),
        ("round_seconds", ""),
        ("uplink_bytes", ""),
        ("gloss", ""),  # not a loss
        ("rmsed", ""),
    ],
)
def test_the_direction_of_a_metric_is_that_of_its_ending(metric, direction):
    assert direction_of(metric) == direction


@pytest.mark.parametrize("name", component_names("fedjax8.tasks.metrics"))
def test_metrics_of_tasks_have_the_direction_that_their_names_are_known_by(name):
    metric = getattr(metrics, name)()
    assert direction_of(f"test_{metric.name}") == metric.direction


def test_a_declared_direction_goes_before_the_known_names_and_the_longest_ending_wins():
    assert direction_of("test_loss", {"loss": "higher"}) == "higher"
    assert direction_of("test_weighted_loss", {"loss": "lower", "weighted_loss": "higher"}) == "higher"
    assert direction_of("test_mae", {"wins": "higher"}) == "lower"


@pytest.mark.parametrize(
    ("metric", "value", "spread", "text"),
    [
        ("test_accuracy", 0.85, 0.07071, "85.00 ± 7.07%"),
        ("accuracy", 1.0, math.nan, "100.00%"),
        ("test_top_3", 0.5, 0.25, "50.00 ± 25.00%"),
        ("top5_accuracy", 0.98768, 0.0, "98.77%"),
        ("waiting_share", 0.4219, math.nan, "42.19%"),
        ("macro_f1", 0.85, 0.07071, "0.8500 ± 0.0707"),
        ("perplexity", 23.456, 1.25, "23.46 ± 1.25"),
        ("mae", 1234.7, 20.4, "1235 ± 20"),
        ("mae", 0.0123467, math.nan, "0.01235"),
        ("mse", 0.0012347, 0.0002, "0.001235 ± 0.000200"),
        ("mse", 3e-7, 1e-8, "3.000e-07 ± 1.0e-08"),
        ("mse", 1.5e36, math.nan, "1.500e+36"),
        ("r2", -0.25, 0.00001, "-0.2500"),
        ("mae", 0.0, math.nan, "0.0000"),
    ],
)
def test_shares_of_rows_are_in_percent_and_other_metrics_have_four_digits(metric, value, spread, text):
    assert readable(metric, value, spread) == text


def test_acronyms_are_written_as_such():
    assert [in_words(m) for m in ("test_mae", "macro_f1", "calibration_error", "r2")] == [
        "test MAE", "macro F1", "calibration error", "R2",
    ]  # fmt: skip
    assert [is_percent(m) for m in ("test_accuracy", "auc")] == [True, False]
    assert [is_bounded(m) for m in ("test_r2", "weighted_f1", "mae", "perplexity")] == [True, True, False, False]
