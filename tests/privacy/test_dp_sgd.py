"""Steps of DP-SGD against gradients worked out in NumPy, on a linear model of two outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8 import privacy
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.monitors.exact import exact
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.data.batches import batch_plan
from fedjax8.errors import UserError
from fedjax8.local import local_training
from fedjax8.privacy import gaussian
from fedjax8.privacy.noisy_sgd import noisy_sgd
from fedjax8.privacy.per_example import clipped_sum
from fedjax8.types import ClientRows, Model, Pool, Variables

N, D = 12, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32) * np.linspace(0.2, 3, N, dtype=np.float32)[:, None]
Y = RNG.normal(size=(N, 2)).astype(np.float32)
PARAMS = {"kernel": RNG.normal(size=(D, 2)).astype(np.float32), "bias": np.float32([0.3, -0.2])}
ROWS = ClientRows(Pool({"x": jnp.asarray(X), "y": jnp.asarray(Y)}, None), jnp.int32(0), jnp.int32(N))


def linear(state=None) -> Model:
    """Half the squared error of x kernel + bias."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        return batch["x"] @ variables.params["kernel"] + variables.params["bias"], variables.state

    return Model(
        init=lambda key, batch: Variables(jax.tree.map(jnp.asarray, PARAMS), state or {}),
        apply=apply,
        loss=lambda out, batch: 0.5 * jnp.sum((out - batch["y"]) ** 2, axis=-1),
        metrics=lambda out, batch: {},
    )


def example_gradients():
    """`[N, D, 2]` and `[N, 2]`, and their joint norms `[N]`."""
    errors = X @ PARAMS["kernel"] + PARAMS["bias"] - Y
    kernels = X[:, :, None] * errors[:, None, :]
    return kernels, errors, np.sqrt((kernels**2).sum(axis=(1, 2)) + (errors**2).sum(axis=1))


def loss(variables, batch, key, multiply=None):
    model = linear()
    outputs, state = model.apply(variables, batch)
    losses, mask = model.loss(outputs, batch), batch["mask"]
    return jnp.sum(losses * mask) / jnp.maximum(jnp.sum(mask), 1), (state, {"train_loss": jnp.sum(losses * mask)})


@functools.partial(jax.jit, static_argnums=(2, 3))
def summed(columns, mask, bound, group):
    variables = Variables(jax.tree.map(jnp.asarray, PARAMS), {})
    return clipped_sum(loss, variables, columns | {"mask": mask}, jax.random.key(0), bound, group)


@pytest.mark.parametrize("group", [5, 64])
def test_the_sum_is_that_of_gradients_clipped_over_all_leaves_together(group):
    kernels, errors, norms = example_gradients()
    bound, used = float(np.median(norms)), 9
    mask = jnp.asarray((np.arange(N) < used).astype(np.float32))
    total, sums = summed({"x": X, "y": Y}, mask, bound, group)
    factors = (np.minimum(1, bound / norms) * (np.arange(N) < used)).astype(np.float32)
    np.testing.assert_allclose(total["kernel"], np.einsum("n,nij->ij", factors, kernels), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total["bias"], factors @ errors, rtol=1e-5, atol=1e-5)
    assert float(sums["train_clipped"]) == np.sum(norms[:used] > bound)
    assert float(sums["train_loss"]) == pytest.approx(0.5 * (errors[:used] ** 2).sum(), rel=1e-5)


def test_no_example_adds_more_than_the_bound():
    for i in range(N):
        total, _ = summed({"x": X, "y": Y * 1e4}, _only(i), 0.5, 64)
        assert np.sqrt(sum(np.sum(np.square(np.float64(x))) for x in total.values())) <= 0.5


def _only(i):
    return jnp.asarray((np.arange(N) == i).astype(np.float32))


def test_an_example_that_is_not_finite_adds_nothing():
    mask = jnp.ones(N)
    whole, _ = summed({"x": X, "y": Y}, mask.at[3].set(0), 1.0, 64)
    for bad in (np.nan, np.inf):
        total, sums = summed({"x": X, "y": np.where(np.arange(N)[:, None] == 3, np.float32(bad), Y)}, mask, 1.0, 64)
        for name in PARAMS:
            np.testing.assert_allclose(total[name], whole[name], rtol=1e-5, atol=1e-6)
        assert sums["train_unusable"] == 1 and sums["train_clipped"] >= 1
        assert all(np.isfinite(value) for value in sums.values())  # or its client would be left out


@functools.cache
def trained(gradient_name, batch_size=5):
    gradients = {
        "none": privacy.none(),
        "no noise": privacy.dp_sgd(1e9, 0.0, sampling="shuffled", microbatch=3),
    }
    local = local_training(linear(), optax.sgd(0.01), batch_plan(batch_size, epochs=2), gradients.get(gradient_name))
    start = linear().init(None, None)
    return jax.jit(lambda: local.train(start, ROWS, jax.random.key(4)))()


def test_without_noise_and_bound_it_is_sgd():
    """4 divides 12, so that every batch has the expected size."""
    private, plain = trained("no noise", 4), trained("none", 4)
    for name in PARAMS:
        np.testing.assert_allclose(private.variables.params[name], plain.variables.params[name], rtol=1e-5, atol=1e-6)
    assert float(private.report["train_loss"]) == pytest.approx(float(plain.report["train_loss"]), rel=1e-5)


def test_no_privacy_is_the_same_program():
    start = linear().init(None, None)
    texts = []
    for gradient in (None, privacy.none()):
        local = local_training(linear(), optax.sgd(0.01), batch_plan(5, epochs=2), gradient)
        texts.append(str(jax.make_jaxpr(lambda key, local=local: local.train(start, ROWS, key))(jax.random.key(0))))
    assert texts[0] == texts[1]


def test_a_batch_is_divided_by_the_size_it_is_expected_to_have():
    """The rows are alike and as good as unclipped: a step is proportional to the number of rows drawn."""
    model, size = linear(), 10
    rows = ClientRows(Pool({"x": jnp.ones((size, D)), "y": jnp.zeros((size, 2))}, None), jnp.int32(0), jnp.int32(size))
    local = local_training(model, optax.sgd(1.0), batch_plan(4, steps=1), privacy.dp_sgd(1e6, 0.0))
    start = Variables({"kernel": jnp.zeros((D, 2)), "bias": jnp.ones(2)}, {})
    keys = jax.random.split(jax.random.key(0), 400)
    out = jax.jit(jax.vmap(lambda key: local.train(start, rows, key)))(keys)
    moved, seen = 1 - np.asarray(out.variables.params["bias"][:, 0]), np.asarray(out.report["train_examples"])
    np.testing.assert_allclose(moved, seen / 4, atol=1e-6)
    assert len(np.unique(seen)) > 4
    assert seen.mean() == pytest.approx(4, abs=5 * np.sqrt(10 * 0.4 * 0.6 / 400))


def test_noise_has_the_deviation_of_z_times_c():
    """Of 10^5 draws; their deviation's standard error is 0.22 %."""
    draws = gaussian.add_noise(jax.random.key(0), {"a": jnp.zeros(40_000), "b": jnp.ones((600, 100))}, 0.3 * 2.0)
    values = np.concatenate([np.asarray(draws["a"]), np.asarray(draws["b"]).ravel() - 1])
    assert values.std() == pytest.approx(0.6, rel=0.01)
    assert abs(values.mean()) < 5 * 0.6 / np.sqrt(1e5)
    assert abs(np.corrcoef(values[:40_000], values[40_000:80_000])[0, 1]) < 5 / np.sqrt(4e4)


def steps_of(rule, draws):
    """Gradients of one batch of all rows, over keys, and the start; `[draws, ...]`."""
    start, batch = linear().init(None, None), {"x": jnp.asarray(X), "y": jnp.asarray(Y), "mask": jnp.ones(N)}
    step = jax.jit(jax.vmap(lambda key: rule.make(loss)(start, batch, key, jnp.float32(4))[0]["kernel"]))
    return np.asarray(step(jax.random.split(jax.random.key(1), draws)))


def test_the_noise_of_a_step_is_divided_by_the_expected_size():
    moved = steps_of(privacy.dp_sgd(1e-3, 1e6), 2000)
    assert moved.std() == pytest.approx(1e3 / 4, rel=5 / np.sqrt(2 * moved.size))


def test_noise_comes_from_threefry_only():
    with pytest.raises(UserError, match="threefry"):
        gaussian.add_noise(jax.random.key(0, impl="rbg"), {"a": jnp.zeros(3)}, 1.0)


def test_models_with_batch_statistics_are_refused():
    local = local_training(
        linear({"mean": jnp.zeros(2)}), optax.sgd(0.1), batch_plan(4, epochs=1), privacy.dp_sgd(1.0, 1.0)
    )
    with pytest.raises(UserError, match="batch statistics"):
        jax.eval_shape(lambda: local.train(linear({"mean": jnp.zeros(2)}).init(None, None), ROWS, jax.random.key(0)))


@pytest.mark.parametrize(
    "make",
    [
        lambda local: scaffold(local, learning_rate=0.1, option="I"),
        lambda local: fda(local, 1.0, monitor=exact()),
    ],
)
def test_algorithms_that_take_other_gradients_are_refused(toys, make):
    def private(_):
        return make(local_training(toys.quadratic(), optax.sgd(0.1), batch_plan(1, steps=1), privacy.dp_sgd(1.0, 1.0)))

    with pytest.raises(UserError, match="does not cover"):
        toys.build(private, toys.q2(), steps=1).discover()


def test_scaffold_by_its_updates_can_be_private(toys):
    def private(_):
        local = local_training(toys.quadratic(), optax.sgd(0.1), batch_plan(1, steps=1), privacy.dp_sgd(1.0, 1.0))
        return scaffold(local, learning_rate=0.1, option="II")

    assert toys.build(private, toys.q2(), steps=1).discover()


def test_noisy_sgd_is_the_papers_code_noise_on_the_plain_gradient():
    gradients = steps_of(noisy_sgd(), 3000)
    kernels, _, norms = example_gradients()
    assert norms.max() > 1  # and none is clipped
    np.testing.assert_allclose(gradients.mean(axis=0), kernels.mean(axis=0), atol=5 * 3.378 / np.sqrt(3000))
    assert gradients.std(axis=0).mean() == pytest.approx(3.378, rel=0.02)
    assert noisy_sgd().privacy(3) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": 0.0, "noise_multiplier": 1.0},
        {"noise_multiplier": -1.0},
        {},
        {"noise_multiplier": 1.0, "target_epsilon": 1.0},
        {"target_epsilon": 1.0},
        {"noise_multiplier": 1.0, "delta": 1.0},
        {"noise_multiplier": 1.0, "sampling": "uniform"},
        {"noise_multiplier": 1.0, "microbatch": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"must|give|needs"):
        privacy.dp_sgd(**settings)
