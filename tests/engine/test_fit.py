"""Rows and models that do not go together are refused where they meet, by the first value that cannot be used."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from fedjax8 import adapters, algorithms, codecs, data, local_training, models, simulate
from fedjax8.data.federated import Dataset, FederatedData
from fedjax8.data.storage import open_federated, save_clients
from fedjax8.engine.fit import fit_of
from fedjax8.errors import UserError
from fedjax8.models import from_linen, from_nnx
from fedjax8.models.uses import Table, uses

PLAN = data.batch_plan(4, epochs=1)
Y = np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32)
FLOATS = np.linspace(-1, 1, 8 * 4, dtype=np.float32).reshape(8, 4)


def clients_of(x, y=Y):
    return FederatedData.from_owners({"x": x, "y": y}, np.arange(len(x)) % 2, 2)


def run_of(model, clients, **changes):
    algorithm = algorithms.fedavg(local_training(model, optax.sgd(0.1), PLAN))
    given = {"cohort_size": 2, "uplink": codecs.none(), "downlink": codecs.none()}
    return simulate(algorithm, clients, **given | changes)


def logistic(num_classes=3):
    return models.logistic(num_classes)


# Labels


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (Y - 1, "labels run from -1 to 1; 3 classes allow 0 to 2; number them anew"),
        (Y + 1, "labels run from 1 to 3; 3 classes allow 0 to 2"),
        (Y * 1000, "labels run from 0 to 2000"),
        (Y.astype(np.float32), r"labels 'y' of the data are float32, .*; try y.astype\(np.int32\)"),
        (Y.astype(bool), r"are bool, .*; try y.astype\(np.int32\)"),
        (Y[:, None], r"gives outputs of shape \(3,\) a row, but the data has 1 labels a row; try y\[:, 0\]"),
        (Y.astype(">i4"), r"column 'y' is >i4 \(8,\), in the byte order of another machine; try column.astype"),
        (Y.astype(object), "Python objects"),
        (Y.astype(str), "it must hold numbers"),
        (Y.tolist(), r"column 'y' is a list of 8; it must be a NumPy array \[N, ...\]: try np.asarray\(y\)"),
        (jnp.asarray(Y), r"column 'y' is a jaxlib ArrayImpl; .*try np.asarray\(y\)"),
        (Y[:5], "lengths {'x': 8, 'y': 5}"),
        (Y + np.int64(2**32), "runs from 4294967296 to 4294967298, beyond 32-bit integers"),
    ],
)
def test_labels_that_the_model_has_no_output_for_are_refused(y, says):
    with pytest.raises(UserError, match=says) as raised:
        run_of(logistic(), clients_of(FLOATS, y))
    assert "\n" not in str(raised.value)


def test_other_losses_may_have_other_labels():
    model = from_linen(nn.Dense(1), lambda out, batch: (out[:, 0] - batch["y"]) ** 2, metrics=lambda out, batch: {})
    assert run_of(model, clients_of(FLOATS, Y * 1000.0)) is not None


def test_a_loss_that_is_not_one_number_a_row_is_refused():
    model = from_linen(nn.Dense(1), lambda out, batch: jnp.mean(out), metrics=lambda out, batch: {})
    with pytest.raises(UserError, match=r"the loss of the model has shape \(\) for 2 rows"):
        run_of(model, clients_of(FLOATS))


# Rows


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(value):
    x = FLOATS.copy()
    x[5, 2] = value
    with pytest.raises(UserError, match="the clients' rows: row 5 of 'x' holds NaN or an infinity; leave such rows"):
        run_of(logistic(), clients_of(x))
    with pytest.raises(UserError, match="the rows to evaluate on: row 5 of 'x' holds NaN"):
        fit_of(logistic(), clients_of(FLOATS).columns).check_other({"x": x, "y": Y}, "the rows to evaluate on")


def test_finite_rows_whose_sum_is_infinite_are_taken():
    assert run_of(logistic(), clients_of(np.full((8, 4), 3e38, np.float32))) is not None


def test_float64_beyond_float32_is_refused():
    with pytest.raises(UserError, match=r"column 'x' runs from .* to 1e\+300, beyond float32"):
        clients_of(np.where(FLOATS == 1, 1e300, FLOATS.astype(np.float64)))


RAW = (np.arange(32) * 8 % 256).reshape(8, 4)


@pytest.mark.parametrize("make", [logistic, lambda: adapters.qat(logistic()), lambda: from_nnx(Linear)])
def test_raw_integers_are_not_multiplied_unscaled(make):
    with pytest.raises(UserError, match=r"multiplies the uint8 values of x .*, 0 to 255; scale them by"):
        run_of(make(), clients_of(RAW.astype(np.uint8)))
    with pytest.raises(UserError, match="multiplies the int32 values of x in the data, but integers other than uint8"):
        run_of(adapters.inputs(make()), clients_of(RAW.astype(np.int32)))
    assert run_of(adapters.inputs(make()), clients_of(RAW.astype(np.uint8))) is not None


def test_convolutions_of_raw_images_are_found_too():
    images = np.zeros((8, 28, 28, 1), np.uint8)
    with pytest.raises(UserError, match="multiplies the uint8 values"):
        run_of(models.lenet5(num_classes=3), clients_of(images))
    assert run_of(adapters.inputs(models.lenet5(num_classes=3)), clients_of(images)) is not None


class Linear(nnx.Module):
    """A dense layer."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.layer(x.astype(jnp.float32))


class Scales(nn.Module):
    """Scales its rows itself."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.astype(jnp.float32) / 255.0)


def test_a_model_that_scales_its_rows_itself_is_taken_at_its_word():
    assert run_of(from_linen(Scales()), clients_of(RAW.astype(np.uint8))) is not None
    assert run_of(from_linen(Scales()), clients_of(RAW.astype(np.int32))) is not None


# Tokens


class Embeds(nnx.Module):
    """Looks tokens up with nnx."""

    def __init__(self, rngs):
        self.table, self.last = nnx.Embed(9, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.table(x).mean(axis=1))


class Shifted(nn.Module):
    """Looks up the token before."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Embed(9, 4)(x - 1).mean(axis=1))


TEXT = {"num_classes": 3, "vocabulary_size": 9, "max_length": 4, "width": 8, "depth": 1, "heads": 2, "mlp": 16}


@pytest.mark.parametrize(("low", "high"), [(0, 9), (-1, 8)])
@pytest.mark.parametrize("make", [lambda: models.text_encoder(token_types=0, **TEXT), lambda: from_nnx(Embeds)])
def test_tokens_beyond_the_vocabulary_are_refused(make, low, high):
    tokens = np.array([[low, 1, 2, high]] * 8, np.int32)
    with pytest.raises(UserError, match=rf"tokens in x run from {low} to {high}, .* a table of 9, which allows 0 to 8"):
        run_of(make(), clients_of(tokens))
    assert run_of(make(), clients_of(np.clip(tokens, 0, 8))) is not None


def test_each_table_is_held_against_the_places_that_are_looked_up_in_it():
    model = models.text_encoder(token_types=2, **TEXT)
    tokens = np.full((8, 4, 2), 8, np.int32)
    tokens[..., 1] = 1
    assert set(fit_of(model, clients_of(tokens).columns).uses.tables) == {
        Table(9, (0, 2, 4, 6)),
        Table(2, (1, 3, 5, 7)),
    }
    assert run_of(model, clients_of(tokens)) is not None
    tokens[3, 2, 1] = 2
    with pytest.raises(UserError, match=r"tokens in x run from 1 to 2, .* a table of 2"):
        run_of(model, clients_of(tokens))


def test_tokens_that_the_model_changes_first_are_not_judged():
    assert run_of(from_linen(Shifted()), clients_of(np.full((8, 4), 9, np.int32))) is not None


def test_targets_of_sequences_may_be_absent_and_no_less():
    x = np.arange(32, dtype=np.int32).reshape(8, 4) % 9
    model = models.char_lstm(vocabulary=9, hidden=4)
    assert run_of(model, clients_of(x, np.where(x == 3, -1, x))) is not None
    with pytest.raises(UserError, match="labels run from -2 to 8; 9 classes allow 0 to 8 and -1 where there is no"):
        run_of(model, clients_of(x, np.where(x == 3, -2, x)))


def test_what_is_moved_about_is_followed():
    batch = {"x": jax.ShapeDtypeStruct((2, 3, 4), np.int32)}

    def looked_up(table, batch):
        x = batch["x"].transpose(2, 0, 1)[1:3].reshape(2, -1)  # columns 1 and 2 of each row of 3 x 4
        return table[x]

    found = uses(looked_up, jax.ShapeDtypeStruct((7, 5), np.float32), batch)
    assert found.tables == (Table(7, (1, 2, 5, 6, 9, 10)),) and not found.unscaled


# Rows on disk


@pytest.mark.parametrize(("name", "value", "says"), [("y", 7, "labels run from 0 to 7"), ("x", np.nan, "holds NaN")])
def test_rows_on_disk_are_checked_as_they_are_read(name, value, says, tmp_path):
    save_clients([{"x": FLOATS[:4], "y": Y[:4]}, {"x": FLOATS[4:], "y": Y[4:]}], tmp_path / "d")
    column = np.load(tmp_path / "d" / "columns" / f"{name}.npy", mmap_mode="r+")
    column[5] = value
    column.flush()
    run = run_of(logistic(), open_federated(tmp_path / "d"))
    with pytest.raises(UserError, match=says):
        run.run_round(run.init())


# Evaluation


@pytest.fixture(scope="module")
def begun():
    run = run_of(logistic(), clients_of(FLOATS))
    return run, run.init()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": Y + 3}, "the rows to evaluate on: labels run from 3 to 5"),
        ({"y": Y.astype(np.float32)}, "'y' is float32 with rows of shape"),
        ({"x": FLOATS.astype(np.int32)}, "'x' is int32 with rows of shape .*, but was float32"),
        ({"x": FLOATS[:, :2]}, r"'x' is float32 with rows of shape \(2,\), but was float32 with rows of shape \(4,\)"),
        ({"x": FLOATS[:3]}, "lengths"),
        ({"x": FLOATS[:0], "y": Y[:0]}, "have no rows; at least one is needed"),
        ({"y": Y.tolist()}, "'y' is a list"),
    ],
)
def test_rows_to_evaluate_on_are_like_those_in_training(begun, changes, says):
    run, state = begun
    with pytest.raises(UserError, match=says):
        run.evaluate(state, {"x": FLOATS, "y": Y} | changes)
    with pytest.raises(UserError, match="have columns x; those trained on have 'y' too"):
        run.evaluate(state, {"x": FLOATS})


# Arguments

DATASET = Dataset({"x": FLOATS, "y": Y}, {"x": FLOATS, "y": Y}, 3, (0.0,), (1.0,), "made")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"algorithm": algorithms.fedavg}, "algorithm must be an Algorithm, but is the function fedavg; call it"),
        ({"algorithm": "fedavg"}, "is 'fedavg'; pass the object"),
        ({"data": DATASET}, r"data must be a FederatedData, but is a Dataset; data.federate\(dataset, data.iid\(\)"),
        ({"uplink": codecs.fp8}, r"uplink must be a Codec, but is the function fp8; call it: fp8\(...\)"),
        ({"downlink": "fp8"}, r"downlink must be a Codec, but is 'fp8'; pass the object, such as codecs.fp8\(\)"),
        ({"cohort_size": 2.0}, "cohort_size must be an int, but is 2.0; try 2"),
        ({"cohort_size": True}, "cohort_size must be an int, but is True"),
        ({"seed": "0"}, "seed must be an int, but is '0'"),
        ({"seed": -1}, "seed is -1"),
        ({"rounds_per_call": 0}, "rounds_per_call 0"),
        ({"executor": "vmap"}, "executor must be an Executor or None, but is 'vmap'"),
        ({"feed_mode": None}, "feed_mode must be a str, but is None"),
        ({"rounds": 3}, "simulate: got an unexpected keyword argument 'rounds'; it takes algorithm, data"),
    ],
)
def test_arguments_of_another_type_are_refused_with_what_to_try(changes, says):
    model = logistic()
    algorithm = algorithms.fedavg(local_training(model, optax.sgd(0.1), PLAN))
    given = {"algorithm": algorithm, "data": clients_of(FLOATS), "cohort_size": np.int64(2)}
    given |= {"uplink": codecs.none(), "downlink": codecs.none()}
    assert simulate(**given) is not None
    with pytest.raises(UserError, match=says) as raised:
        simulate(**given | changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: local_training(models.mlp, optax.sgd(0.1), PLAN), r"model must be a Model, .*call it: mlp\(...\)"),
        (lambda: local_training(nn.Dense(3), optax.sgd(0.1), PLAN), r"a Dense; models.from_linen\(module\) makes a"),
        (lambda: local_training(Linear(nnx.Rngs(0)), optax.sgd(0.1), PLAN), r"a Linear; models.from_nnx\(lambda rngs"),
        (lambda: local_training(logistic(), optax.sgd, PLAN), r"GradientTransformation, .*call it: sgd\(...\)"),
        (lambda: local_training(logistic(), 0.1, PLAN), r"is 0.1; try optax.sgd\(learning_rate\)"),
        (lambda: local_training(logistic(), optax.sgd(0.1), 32), r"plan must be a BatchPlan, but is 32; try data"),
        (lambda: adapters.qat(models.mlp), r"qat: model must be a Model, but is the function mlp; call it: mlp\(...\)"),
        (lambda: adapters.inputs(nn.Dense(3), 0.5, 0.5), r"inputs: model must be a Model, .*from_linen\(module\)"),
        (lambda: algorithms.fedavg(logistic()), r"local must be a LocalTraining, but is a Model; local_training\("),
        (lambda: algorithms.scaffold(local_training, 0.1), "is the function local_training; call it"),
        (lambda: data.federate(data.digits, data.iid(), 3), "dataset must be a Dataset, but is the function digits"),
        (lambda: data.federate(DATASET, "iid", 3), "split must be a function, but is 'iid'"),
        (lambda: data.federate(DATASET, data.iid(), 3.5), "num_clients must be an int, but is 3.5"),
        (lambda: data.federate(clients_of(FLOATS), data.iid(), 3), "is a FederatedData; it is split over clients"),
    ],
)
def test_the_parts_of_a_run_are_refused_likewise(call, says):
    with pytest.raises(UserError, match=says):
        call()
