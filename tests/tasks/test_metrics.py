"""Losses and metrics against scikit-learn, NumPy and cases worked out by hand; states merge in any grouping."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from flax import linen as nn

from fedjax8 import models, tasks
from fedjax8.errors import UserError
from fedjax8.lookup import component_names, find
from fedjax8.tasks import metrics
from fedjax8.tasks.base import LOSS
from fedjax8.tasks.metrics.auc import log_odds

RNG = np.random.default_rng(5)
N = 60
LOGITS = RNG.standard_normal((N, 4)).astype(np.float32) * 2
CLASSES = RNG.integers(0, 4, N).astype(np.int32)
YES = RNG.integers(0, 2, N).astype(np.int32)
MARKS = (RNG.random((N, 5)) < 0.3).astype(np.uint8)
MARK_LOGITS = (RNG.standard_normal((N, 5)) + MARKS - 0.5).astype(np.float32)
NUMBERS = RNG.standard_normal((N, 3)).astype(np.float32)
PREDICTED = NUMBERS + 0.3 * RNG.standard_normal((N, 3)).astype(np.float32)
TEXT = RNG.integers(-1, 4, (N, 7)).astype(np.int32)
TEXT_LOGITS = RNG.standard_normal((N, 7, 4)).astype(np.float32)


def of_set(task, outputs, targets, name=None, cuts=(0, 13, 14, 50, N), pad=3):
    """A metric's value from states of batches of several sizes, each padded with rows that must not count."""
    metric = task.on(models.from_linen(nn.Dense(1))).sets[name or task.main]
    states = []
    for first, last in itertools.pairwise(cuts):
        grown = [np.concatenate([x[first:last], x[:pad]]) for x in (outputs, targets)]
        mask = np.concatenate([np.ones(last - first, np.float32), np.zeros(pad, np.float32)])
        state = jax.device_get(metric.state(*map(jnp.asarray, grown), jnp.asarray(mask)))
        states.append(jax.tree.map(lambda x: x[: last - first], state) if metric.rows else state)
    merge = (lambda *x: np.concatenate(x)) if metric.rows else (lambda *x: sum(np.asarray(v) for v in x))
    return metric.value(jax.tree.map(merge, *states))


def of_rows(task, outputs, targets, name=None):
    """A metric's mean over rows."""
    model = task.on(models.from_linen(nn.Dense(1)))
    return float(np.mean(model.metrics(jnp.asarray(outputs), {"y": jnp.asarray(targets)})[name or task.main]))


def loss_of(task, outputs, targets):
    return np.asarray(task.loss(jnp.asarray(outputs), {"y": jnp.asarray(targets)}))


def softmax(logits):
    e = np.exp(logits.astype(np.float64))
    return e / e.sum(axis=-1, keepdims=True)


def test_f1_is_that_of_scikit_learn():
    of_classes = tasks.classification(metrics=(metrics.macro_f1(),))
    wanted = sklearn.metrics.f1_score(CLASSES, LOGITS.argmax(1), average="macro")
    assert of_set(of_classes, LOGITS, CLASSES) == pytest.approx(wanted, abs=1e-12)
    only_two = np.minimum(CLASSES, 1)  # a class that nobody names and nobody is of does not count
    two_logits = LOGITS - np.array([0, 0, 0, 100], np.float32)
    wanted = sklearn.metrics.f1_score(only_two, two_logits.argmax(1), average="macro")
    assert of_set(of_classes, two_logits, only_two) == pytest.approx(wanted, abs=1e-12)
    marks = np.concatenate([MARKS, np.zeros((N, 1), np.uint8)], axis=1)
    logits = np.concatenate([MARK_LOGITS, np.full((N, 1), -1, np.float32)], axis=1)
    wanted = sklearn.metrics.f1_score(marks, logits > 0, average="macro", zero_division=0)
    assert of_set(tasks.multilabel(), logits, marks) == pytest.approx(wanted, abs=1e-12)
    yes = tasks.binary(metrics=(metrics.macro_f1(),))
    wanted = sklearn.metrics.f1_score(YES, LOGITS[:, 0] > 0, average="macro")
    assert of_set(yes, LOGITS[:, :1], YES) == of_set(yes, LOGITS[:, 0], YES) == pytest.approx(wanted, abs=1e-12)


def test_auc_is_that_of_scikit_learn_and_knows_saturated_outputs():
    yes = tasks.binary(metrics=(metrics.auc(),))
    wanted = sklearn.metrics.roc_auc_score(YES, LOGITS[:, 0])
    assert of_set(yes, LOGITS[:, 0], YES) == pytest.approx(wanted, abs=1e-12)
    far = 100 + LOGITS[:, 0]  # each probability is 1 in float64
    assert of_set(yes, far, YES) == pytest.approx(sklearn.metrics.roc_auc_score(YES, far), abs=1e-12)
    several = tasks.classification(metrics=(metrics.auc(),))
    wanted = sklearn.metrics.roc_auc_score(CLASSES, softmax(LOGITS), multi_class="ovr", average="macro")
    assert of_set(several, LOGITS, CLASSES) == pytest.approx(wanted, abs=1e-12)
    labels = tasks.multilabel(metrics=(metrics.auc(),))
    wanted = sklearn.metrics.roc_auc_score(MARKS, MARK_LOGITS, average="macro")
    assert of_set(labels, MARK_LOGITS, MARKS) == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(of_set(yes, np.full(N, np.nan, np.float32), YES))
    with pytest.raises(UserError, match="same targets"):
        metrics.auc().admits(np.ones(4, np.int32))
    with pytest.raises(UserError, match="sequences"):
        of_set(several, TEXT_LOGITS, TEXT)


def test_log_odds_are_those_of_softmax():
    p = softmax(LOGITS)
    np.testing.assert_allclose(log_odds(LOGITS), np.log(p / (1 - p)), atol=1e-6)
    np.testing.assert_allclose(log_odds(np.array([[0, 60.0]], np.float32)), [[-60, 60]], rtol=1e-12)


def test_calibration_error_of_a_case_worked_out_by_hand():
    """Confidences 0.9, 0.9, 0.6, 0.6 of classes right, wrong, right, right: |1 - 1.8| / 4 + |2 - 1.2| / 4 = 0.4."""
    sure = np.array([0.9, 0.9, 0.6, 0.6])
    logits = np.stack([np.zeros(4), np.log(sure / (1 - sure))], axis=1).astype(np.float32)
    targets = np.array([1, 0, 1, 1], np.int32)
    task = tasks.classification(metrics=(metrics.calibration_error(10),))
    assert of_set(task, logits, targets, cuts=(0, 1, 4), pad=1) == pytest.approx(0.4, abs=1e-6)
    yes = tasks.binary(metrics=(metrics.calibration_error(10),))
    assert of_set(yes, logits[:, 1], targets, cuts=(0, 1, 4), pad=1) == pytest.approx(0.4, abs=1e-6)


def test_perplexity_is_of_targets_and_not_of_rows():
    p = softmax(TEXT_LOGITS)
    real = TEXT >= 0
    nats = -np.log(np.take_along_axis(p, np.maximum(TEXT, 0)[..., None], -1)[..., 0])[real]
    assert of_set(tasks.language_model(), TEXT_LOGITS, TEXT) == pytest.approx(np.exp(nats.mean()), rel=1e-5)
    uniform = np.zeros((N, 7, 4), np.float32)
    assert of_set(tasks.language_model(), uniform, TEXT) == pytest.approx(4, rel=1e-5)


def test_errors_of_numbers_are_those_of_scikit_learn():
    task = tasks.regression(metrics=(metrics.mae(), metrics.rmse(), metrics.r2()))
    assert of_rows(task, PREDICTED, NUMBERS) == pytest.approx(
        sklearn.metrics.mean_absolute_error(NUMBERS, PREDICTED), rel=1e-5
    )
    squares = sklearn.metrics.mean_squared_error(NUMBERS, PREDICTED)
    assert of_set(task, PREDICTED, NUMBERS, "rmse") == pytest.approx(np.sqrt(squares), rel=1e-5)
    wanted = sklearn.metrics.r2_score(NUMBERS, PREDICTED)
    assert of_set(task, PREDICTED, NUMBERS, "r2") == pytest.approx(wanted, rel=1e-5)
    one = of_set(task, PREDICTED[:, :1], NUMBERS[:, 0], "r2")
    assert one == pytest.approx(sklearn.metrics.r2_score(NUMBERS[:, 0], PREDICTED[:, 0]), rel=1e-5)
    with pytest.raises(UserError, match="equal"):
        metrics.r2().admits(np.stack([np.arange(5.0), np.ones(5)], axis=1))


def test_top_k_of_so_many_classes_or_more_says_nothing_and_is_refused():
    for k in (4, 5):
        task = tasks.classification(metrics=(metrics.top_k(k),))
        with pytest.raises(UserError, match=f"top_{k} is 1 for any model of 4 classes; take k below 4"):
            task.on(models.from_linen(nn.Dense(4))).metrics(jnp.asarray(LOGITS), {"y": jnp.asarray(CLASSES)})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (tasks.classification(metrics=(metrics.accuracy(), metrics.top_k(2), metrics.macro_f1())), LOGITS, CLASSES),
        (tasks.language_model(metrics=(metrics.accuracy(), metrics.macro_f1())), TEXT_LOGITS, np.maximum(TEXT, 0)),
        (tasks.multilabel(metrics=(metrics.label_accuracy(), metrics.macro_f1())), MARK_LOGITS, MARKS),
        (tasks.binary(metrics=(metrics.accuracy(), metrics.macro_f1())), LOGITS[:, :1], YES),
    ],
    ids=["classes", "text", "marks", "binary"],
)
def test_outputs_that_are_not_finite_are_never_right(task, outputs, targets, bad):
    model = task.on(models.from_linen(nn.Dense(1)))
    broken = jnp.full(outputs.shape, bad, jnp.float32)
    found = model.metrics(broken, {"y": jnp.asarray(targets)})
    assert {name: float(jnp.max(values)) for name, values in found.items()} == dict.fromkeys(found, 0.0)
    assert of_set(task, np.asarray(broken), targets, "macro_f1") == 0


def test_top_k_is_that_of_scikit_learn():
    task = tasks.classification(metrics=(metrics.top_k(2), metrics.accuracy()))
    assert task.main == "top_2"
    wanted = sklearn.metrics.top_k_accuracy_score(CLASSES, LOGITS, k=2)
    assert of_rows(task, LOGITS, CLASSES) == pytest.approx(wanted, rel=1e-6)
    assert of_rows(task, np.full((N, 4), np.nan, np.float32), CLASSES) == 0
    assert of_rows(task, np.zeros((N, 4), np.float32), CLASSES) == 0  # nothing is told apart


def test_label_accuracy_is_one_minus_the_hamming_loss():
    wanted = 1 - sklearn.metrics.hamming_loss(MARKS, MARK_LOGITS > 0)
    assert of_rows(tasks.multilabel(), MARK_LOGITS, MARKS, "label_accuracy") == pytest.approx(wanted, rel=1e-6)


def test_losses_are_those_of_their_formulas():
    z = LOGITS[:, 0].astype(np.float64)
    logistic = np.where(YES == 1, 3 * np.log1p(np.exp(-z)), np.log1p(np.exp(z)))
    np.testing.assert_allclose(loss_of(tasks.binary(3.0), LOGITS[:, :1], YES), logistic, rtol=1e-5)
    signed = MARK_LOGITS.astype(np.float64) * np.where(MARKS == 1, -1, 1)
    np.testing.assert_allclose(
        loss_of(tasks.multilabel(), MARK_LOGITS, MARKS), np.log1p(np.exp(signed)).mean(1), rtol=1e-5
    )
    error = np.array([[0.5, -2.0]], np.float32)
    nothing = np.zeros((1, 2), np.float32)
    for given, wanted in (
        ({}, (0.25 + 4) / 2),
        ({"loss": "absolute"}, 2.5 / 2),
        ({"loss": "huber"}, (0.125 + 1.5) / 2),
        ({"loss": "huber", "delta": 4.0}, (0.125 + 2) / 2),
    ):
        np.testing.assert_allclose(loss_of(tasks.regression(**given), error, nothing), [wanted], rtol=1e-6)
    p = softmax(LOGITS)
    smooth = 0.9 * np.eye(4)[CLASSES] + 0.1 / 4
    np.testing.assert_allclose(
        loss_of(tasks.classification(0.1), LOGITS, CLASSES), -(smooth * np.log(p)).sum(1), rtol=1e-4
    )
    text = loss_of(tasks.classification(0.1), TEXT_LOGITS, TEXT)
    q, real = softmax(TEXT_LOGITS), TEXT >= 0
    each = -((0.9 * np.eye(4)[np.maximum(TEXT, 0)] + 0.1 / 4) * np.log(q)).sum(-1)
    np.testing.assert_allclose(text, (each * real).sum(1) / np.maximum(real.sum(1), 1), rtol=1e-4)


def test_logistic_losses_at_the_extremes_of_float32_are_finite_with_finite_gradients():
    logits = jnp.array([[3e38], [-3e38], [0.0]])
    batch = {"y": jnp.array([0, 1, 1])}
    for task in (tasks.binary(), tasks.multilabel()):
        targets = batch if task.name == "binary" else {"y": batch["y"][:, None]}
        assert np.isfinite(loss_of(task, logits, targets["y"])).all()
        assert np.isfinite(jax.grad(lambda z: jnp.sum(task.loss(z, targets)))(logits)).all()


@pytest.mark.parametrize("package", ["fedjax8.tasks", "fedjax8.tasks.metrics"])
def test_every_example_is_made(package):
    for name in component_names(package):
        module_of = find(name, package)
        for settings in __import__(f"{package}.{name}", fromlist=["EXAMPLES"]).EXAMPLES:
            made = module_of(**settings)
            directions = made.directions.values() if package == "fedjax8.tasks" else [made.direction]
            assert set(directions) <= {"higher", "lower"}


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: tasks.regression(metrics=(metrics.accuracy(),)), "accuracy is no metric of regression"),
        (lambda: tasks.classification(metrics=(metrics.mae(),)), "mae is no metric of classification"),
        (lambda: tasks.classification(metrics=("accuracy",)), "objects of tasks.metrics"),
        (lambda: tasks.classification(metrics=(metrics.accuracy(), metrics.accuracy())), "different names"),
        (lambda: tasks.regression(loss="squard"), "did you mean 'squared'"),
        (lambda: tasks.regression(delta=2.0), "changes nothing"),
    ],
)
def test_mistakes_are_named(make, match):
    with pytest.raises(UserError, match=match):
        make()


def test_the_metric_of_clients_is_the_main_one_where_it_is_a_mean_over_rows():
    assert tasks.regression().of_clients == "mae" and tasks.language_model().of_clients == LOSS
