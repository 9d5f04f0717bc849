"""flax modules, linen and nnx, as models: parameters, state, randomness, the hook on layer products."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.lookup import component_names
from fedjax8.models import from_linen, from_nnx
from fedjax8.types import Variables


class Linen(nn.Module):
    """Dense, batch norm, dropout, dense."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(6)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class NNX(nnx.Module):
    """The same with nnx."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


MODELS = {"linen": lambda: from_linen(Linen(), train_argument="train"), "nnx": lambda: from_nnx(NNX)}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture
def batch(rng):
    x = jnp.asarray(rng.standard_normal((8, 4)), jnp.float32)
    return {"x": x, "y": jnp.asarray([0, 1, 2, 0, 1, 2, 0, 1]), "mask": jnp.ones(8)}


def test_parameters_and_state_are_told_apart(model, batch):
    variables = model.init(jax.random.key(0), batch)
    params, state = trees.named_leaves(variables.params), trees.named_leaves(variables.state)
    assert sum(x.size for x in params.values()) == 4 * 6 + 6 + 6 + 6 + 6 * 3 + 3
    assert sorted(x.shape for x in state.values()) == [(6,), (6,)]
    assert all(x.dtype == jnp.float32 for x in (*params.values(), *state.values()))


def test_training_moves_the_running_mean_towards_the_batch(model, batch):
    variables = model.init(jax.random.key(0), batch)
    _, state = model.apply(variables, batch, key=jax.random.key(1), train=True)
    (mean,) = (np.asarray(x) for n, x in trees.named_leaves(state).items() if n.endswith("mean"))
    first = next(iter(variables.params[k] for k in ("Dense_0", "first") if k in variables.params))
    hidden = np.asarray(batch["x"]) @ np.asarray(first["kernel"]) + np.asarray(first["bias"])
    np.testing.assert_allclose(mean, 0.1 * hidden.mean(axis=0), atol=1e-6)


def test_evaluation_changes_no_state_and_draws_nothing(model, batch):
    variables = model.init(jax.random.key(0), batch)
    first, state = model.apply(variables, batch)
    second, _ = model.apply(variables, batch, key=jax.random.key(5))
    np.testing.assert_array_equal(first, second)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(variables.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_is_a_function_of_the_key(model, batch):
    variables = model.init(jax.random.key(0), batch)
    run = jax.jit(lambda key: model.apply(variables, batch, key=key, train=True)[0])
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert np.any(np.asarray(run(jax.random.key(1)) != run(jax.random.key(2))))


def test_the_hook_sees_every_layer_and_replaces_its_product(model, batch):
    variables = model.init(jax.random.key(0), batch)
    layers = [p for p in (variables.params.get(k) for k in ("Dense_0", "first", "Dense_1", "last")) if p]
    seen = []

    def zero(path, product, x, kernel):
        seen.append((path, x, kernel))
        return 0.0 * product.forward(x, kernel)

    outputs, _ = model.apply(variables, batch, multiply=zero)
    assert [variables.params[path] for path, *_ in seen] == layers
    np.testing.assert_array_equal(seen[0][1], batch["x"])
    for (*_, kernel), layer in zip(seen, layers, strict=True):
        np.testing.assert_array_equal(kernel, layer["kernel"])
    np.testing.assert_array_equal(outputs, np.broadcast_to(layers[1]["bias"], (8, 3)))


def test_a_hook_that_only_forwards_changes_nothing(model, batch):
    variables = model.init(jax.random.key(0), batch)
    forwarded, _ = model.apply(variables, batch, multiply=lambda path, product, x, kernel: product.forward(x, kernel))
    np.testing.assert_array_equal(forwarded, model.apply(variables, batch)[0])


def test_gradients_flow_under_vmap_over_clients(model, batch):
    variables = model.init(jax.random.key(0), batch)

    def loss(params, key):
        outputs, _ = model.apply(Variables(params, variables.state), batch, key=key, train=True)
        return jnp.mean(model.loss(outputs, batch))

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(jax.grad(loss), (None, 0))(variables.params, keys)
    alone = jax.grad(loss)(variables.params, keys[1])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b, atol=1e-6)  # sums in another order


def test_loss_and_accuracy_equal_numpy(model, batch, rng):
    logits = rng.standard_normal((8, 3)).astype(np.float32)
    exact = logits.astype(np.float64)
    log_probability = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    y = np.asarray(batch["y"])
    np.testing.assert_allclose(model.loss(logits, batch), -log_probability[np.arange(8), y], atol=1e-6)
    np.testing.assert_array_equal(model.metrics(logits, batch)["accuracy"], exact.argmax(axis=1) == y)


def test_a_sequence_counts_by_the_mean_over_its_labels(rng):
    logits = rng.standard_normal((2, 3, 4)).astype(np.float32)
    y = jnp.asarray([[2, 0, 1], [3, -1, -1]])
    model, exact = MODELS["linen"](), logits.astype(np.float64)
    log_probability = exact - np.log(np.exp(exact).sum(axis=2, keepdims=True))
    losses = [-(log_probability[0, 0, 2] + log_probability[0, 1, 0] + log_probability[0, 2, 1]) / 3]
    losses.append(-log_probability[1, 0, 3])
    np.testing.assert_allclose(model.loss(logits, {"y": y}), losses, atol=1e-6)  # float32 sums of values of order one
    hits = exact.argmax(axis=2) == np.asarray(y)
    expected = [hits[0].mean(), hits[1, 0]]
    np.testing.assert_allclose(model.metrics(logits, {"y": y})["accuracy"], expected, atol=1e-7)


def test_a_position_without_a_label_has_no_gradient(rng):
    logits, y = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32), jnp.asarray([[2, 0, -1], [3, -1, -1]])
    gradient = jax.grad(lambda logits: jnp.sum(MODELS["linen"]().loss(logits, {"y": y})))(logits)
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=-1), np.asarray(y) >= 0)


TEXT = {
    "x": jnp.asarray([[0, 1, 2, 3], [4, 3, 2, 1], [1, 1, 0, 0]]),
    "y": jnp.asarray([[1, 2, 3, 4], [3, 2, 1, 0], [1] * 4]),
}


@pytest.mark.parametrize("name", component_names("fedjax8.models"))
def test_every_example_of_every_model_runs_and_learns_something(name):
    module = importlib.import_module(f"fedjax8.models.{name}")
    for settings in module.EXAMPLES:
        model = getattr(module, name)(**settings)
        x = jnp.linspace(-1, 1, 3 * 28 * 28).reshape(3, 28, 28, 1)
        columns = TEXT if name in ("char_lstm", "gpt") else {"x": x, "y": jnp.asarray([0, 1, 2])}
        columns = columns | {"x": TEXT["x"]} if name == "text_encoder" else columns
        batch = columns | {"mask": jnp.ones(3)}
        variables = jax.jit(model.init)(jax.random.key(0), batch)  # one program, not one per operation

        def loss(params, batch=batch, model=model, variables=variables):
            inputs = Variables(params, variables.state), batch
            return jnp.mean(model.loss(model.apply(*inputs, key=jax.random.key(1), train=True)[0], batch))

        step = jax.jit(jax.value_and_grad(loss))
        before, gradients = step(variables.params)
        after, _ = step(jax.tree.map(lambda p, g: p - 0.01 * g, variables.params, gradients))
        assert float(after) < float(before)


# Modules that could never train


class WithArgument(nn.Module):
    """Batch norm and dropout that train only where they are told to."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x))


class Deterministic(nn.Module):
    """The same, the other way round."""

    @nn.compact
    def __call__(self, x, *, deterministic: bool = True):
        return nn.Dropout(0.5, deterministic=deterministic)(nn.Dense(3)(x))


class Field(nn.Module):
    """The same, decided when the module is made."""

    training: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=not self.training)(nn.Dense(3)(x))


class NNXArgument(nnx.Module):
    """An nnx module with such an argument."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x, train: bool = False):
        return self.layer(x)


@pytest.mark.parametrize(
    ("module", "settings", "says"),
    [
        (WithArgument(), {}, "WithArgument.__call__ takes 'train', which nobody .*; give train_argument='train'"),
        (Deterministic(), {}, "takes 'deterministic', .*; give train_argument='deterministic'"),
        (nn.BatchNorm(), {}, "takes 'use_running_average'"),
        (Field(), {}, "Field has the field 'training', .*; make it an argument of __call__ and"),
        (WithArgument(), {"train_argument": "training"}, "train_argument is 'training', but .* takes x, train; name"),
        (nn.Dense(3), {"train_argument": "train"}, "train_argument is 'train', but Dense.__call__ takes inputs"),
        (nn.Dense, {}, r"make one: Dense\(...\)"),
        (lambda x: x, {}, "from_linen takes a linen module"),
        (NNX, {}, "see from_nnx"),
        (nn.Module(), {}, "has no __call__"),
    ],
    ids=map(str, range(10)),  # pytest would look for names in the modules
)
def test_modules_that_would_never_train_are_refused_with_the_name_of_the_argument(module, settings, says):
    with pytest.raises(UserError, match=says):
        from_linen(module, **settings)


def test_an_argument_that_is_true_in_evaluation_is_negated(batch):
    for model in (from_linen(Deterministic(), train_argument="deterministic"), from_nnx(NNX)):
        variables = model.init(jax.random.key(0), batch)
        still, _ = model.apply(variables, batch)
        trained, _ = model.apply(variables, batch, key=jax.random.key(1), train=True)
        assert np.any(np.asarray(trained) != np.asarray(still))
        np.testing.assert_array_equal(still, model.apply(variables, batch, key=jax.random.key(1))[0])


def test_nnx_modules_are_refused_for_the_same_argument_and_where_they_are_no_factories(batch):
    with pytest.raises(UserError, match=r"NNXArgument.__call__ takes 'train', which nobody passes; leave it out"):
        from_nnx(NNXArgument).init(jax.random.key(0), batch)
    for given in (NNX(nnx.Rngs(0)), 3):
        with pytest.raises(UserError, match="from_nnx takes a function that builds a module"):
            from_nnx(given)
