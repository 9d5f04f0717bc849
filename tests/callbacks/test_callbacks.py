"""Callbacks one by one: what they make of a series of values, and what they refuse."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.callbacks import Moment, best_checkpoint, early_stopping, plateau, read_best, target
from fedjax8.callbacks.best_checkpoint import FILE
from fedjax8.directions import Measures
from fedjax8.errors import UserError
from fedjax8.types import Variables


def shown(callback, values, name="test_loss", folder=None, model=None):
    """Rounds at which the callback says stop, the scales it asks for, its last memory; a None is a line without it."""
    memory, stops, scales = dict(callback.memory), [], []
    for number, value in enumerate(values, 1):
        line = {"round": number, "train_loss": 1.0} | ({} if value is None else {name: value})
        decision = callback.step(memory, Moment(number, line, value is not None, model or (lambda: None), folder))
        memory = decision.memory
        stops += [number] if decision.stop else []
        scales += [] if decision.step_scale is None else [(number, decision.step_scale)]
    return stops, scales, memory


def test_early_stopping_counts_values_that_are_not_better_than_the_best():
    stops, _, memory = shown(early_stopping(3, "test_loss"), [2.0, None, 1.0, 1.5, math.nan, 1.2, 1.1])
    assert stops == [6, 7] and (memory["best"], memory["round"]) == (1.0, 3)
    assert shown(early_stopping(3, "test_loss"), [3, 2, 1, 1.5, 0.5, 1, 0.9])[0] == []
    assert shown(early_stopping(2, "test_accuracy"), [0.1, 0.3, 0.3, 0.2, 0.4], "test_accuracy")[0] == [4]
    within = early_stopping(2, "test_loss", min_delta=0.5)
    assert shown(within, [2.0, 1.8, 1.6])[0] == [3]  # better by less than half
    assert shown(within, [2.0, 1.8, 1.4])[0] == []
    assert shown(early_stopping(2, "test_loss"), [math.nan, math.inf, math.nan])[0] == [2, 3]  # never finite


def test_a_target_is_reached_at_or_beyond_its_value():
    assert shown(target(0.5, "test_accuracy"), [0.4, None, 0.5, 0.6], "test_accuracy")[0] == [3, 4]
    assert shown(target(0.5, "test_loss"), [0.6, math.nan, 0.5])[0] == [3]
    assert shown(target(0.5, "test_accuracy"), [math.inf, 0.6], "test_accuracy")[0] == [2]
    assert shown(target(0.5, "test_loss"), [-math.inf, 0.4])[0] == [2]
    assert shown(target(2.0, "test_size", direction="lower"), [3.0, 1.0], "test_size")[0] == [2]


def test_a_plateau_lowers_the_scale_after_each_stall_down_to_the_least():
    callback = plateau(2, 0.5, "test_loss", least=0.2)
    _, scales, memory = shown(callback, [1.0, 1.0, 1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])
    assert scales == [(3, 0.5), (6, 0.25), (8, 0.2), (10, 0.2)]
    assert callback.memory == {"scale": 1.0} and memory["best"] == 0.5


def test_the_best_model_is_kept_on_disk_whole_with_what_it_is_of(tmp_path):
    """Each of the models is its round; only those better than ever before are written."""
    rounds = iter([1, 3, 5])

    def model():
        number = next(rounds)
        return Variables({"a": {"0": jnp.full((2, 3), number, jnp.float32)}}, {"mean": jnp.float32(number)})

    shown(best_checkpoint("test_loss"), [3.0, 4.0, 2.0, math.nan, 1.0, 1.0], folder=tmp_path, model=model)
    like = Variables({"a": {"0": np.zeros((2, 3), np.float32)}}, {"mean": np.float32(0)})
    found, about = read_best(tmp_path / FILE, like)
    assert about == {"round": 5, "metric": "test_loss", "value": 1.0}
    np.testing.assert_array_equal(found.params["a"]["0"], np.full((2, 3), 5, np.float32))
    assert float(found.state["mean"]) == 5 and found.frozen == {}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    with pytest.raises(UserError, match="is of another model: params/b, params/a/0 differ"):
        read_best(tmp_path / FILE, like._replace(params={"b": np.zeros(1)}))
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read as a file of best_checkpoint"):
        read_best(tmp_path / FILE, like)


def test_a_best_model_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    model = lambda: Variables({"x": jnp.float32(1)}, {})
    with pytest.raises(UserError, match=r"--workdir: cannot write .*best\.npz: No such file or directory"):
        shown(best_checkpoint("test_loss"), [1.0], folder=tmp_path / "gone", model=model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: early_stopping(0), "patience must be at least 1"),
        (lambda: early_stopping(min_delta=-1.0), "min_delta must be at least 0"),
        (lambda: early_stopping(metric="padding"), "set direction to higher or lower"),
        (lambda: early_stopping(direction="up"), "direction must be one of auto, higher, lower"),
        (lambda: plateau(factor=1.0), "factor and least must be above 0 and below 1"),
        (lambda: target(0.5, "test_accuracy", part="validation"), "take 'validation_accuracy'"),
        (lambda: target(0.5, "float32_test_loss", part="validation"), "take 'float32_validation_loss'"),
        (lambda: target(90.0), "target value 90 of test_accuracy is never reached"),
        (lambda: target(0.0), "target value 0 of test_accuracy is never reached, or at once"),
        (lambda: target(float("nan"), "test_loss"), "target value nan of test_loss is never reached"),
        (lambda: target(float("inf"), "test_loss"), "target value inf of test_loss is never reached, or at once"),
        (lambda: target(0.5, "validation_loss"), r"needs a validation part: set --config\.validation=0\.1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_metric_that_is_not_logged_is_named_at_the_first_evaluation():
    with pytest.raises(UserError, match=r"no 'test_los' up to the evaluation of round 2; .*did you mean 'test_loss'"):
        shown(early_stopping(1, "test_los", direction="lower"), [None, 1.0])
    assert early_stopping(part="validation").reads == ("validation_accuracy",)


def test_a_metrics_name_is_that_on_the_rows_of_the_part_with_its_direction():
    regression = Measures("mae", {"mae": "lower", "wins": "higher"})
    assert early_stopping(part="validation", measures=regression).reads == ("validation_mae",)
    assert early_stopping(metric="r2").reads == ("test_r2",)
    assert shown(early_stopping(2, measures=regression), [3.0, 2.0, 2.5, 2.5], "test_mae")[0] == [4]
    assert shown(early_stopping(2, "r2"), [0.1, 0.5, 0.4, 0.3], "test_r2")[0] == [4]
    assert shown(target(2, "wins", measures=regression), [1.0, 2.0], "test_wins")[0] == [2]
    assert shown(plateau(1, 0.5, measures=regression), [2.0, 1.0, 1.5], "test_mae")[1] == [(3, 0.5)]
    # What the task declares goes before the known names.
    assert shown(early_stopping(1, "loss", measures=Measures("loss", {"loss": "higher"})), [1.0, 2.0])[0] == []
    assert best_checkpoint("train_loss").reads == ("train_loss",)
    assert shown(target(35.0, "perplexity"), [50.0, 34.0], "test_perplexity")[0] == [2]
