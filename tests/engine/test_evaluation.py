"""Evaluation by every executor: the same counts, whatever the rows, and no more at once than there are or than fit."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.engine.evaluation import evaluation, largest_array
from fedjax8.engine.side_by_side import side_by_side
from fedjax8.errors import UserError
from fedjax8.executors import chunked, loop, pmap, vmap
from fedjax8.lookup import component_names
from fedjax8.types import Model, Variables

CLASSES, FEATURES = 5, 7
CASES = {
    f"{name}-{i}": (name, settings)
    for name in component_names("fedjax8.executors")
    for i, settings in enumerate(importlib.import_module(f"fedjax8.executors.{name}").EXAMPLES)
}


def linear(seen=None) -> Model:
    """Scores x kernel of small integers, so that the class of the highest one is never in doubt; a view with -kernel.
    `seen` collects the shapes of the batches that are traced."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        if seen is not None:
            seen.append(batch["x"].shape[0])
        return batch["x"] @ variables.params["kernel"], variables.state

    def negated(variables, batch, **_):
        return -(batch["x"] @ variables.params["kernel"]), variables.state

    return Model(
        init=lambda key, batch: Variables({"kernel": jnp.zeros((FEATURES, CLASSES))}, {}),
        apply=apply,
        loss=lambda scores, batch: -jnp.take_along_axis(jax.nn.log_softmax(scores), batch["y"][:, None], 1)[:, 0],
        metrics=lambda scores, batch: {"accuracy": jnp.float32(jnp.argmax(scores, -1) == batch["y"])},
        views={"negated": negated},
        report=lambda params: {"largest": jnp.max(params["kernel"])},
    )


def rows_and_kernel(num_rows):
    rng = np.random.default_rng(num_rows)
    x = rng.integers(-3, 4, (num_rows, FEATURES)).astype(np.float32)
    kernel = rng.integers(-3, 4, (FEATURES, CLASSES)).astype(np.float32)
    return {"x": x, "y": rng.integers(0, CLASSES, num_rows).astype(np.int32)}, kernel


def expected(columns, kernel):
    """By NumPy: how many are right, with the kernel and with its negation, and the mean cross-entropy."""
    scores = columns["x"].astype(np.float64) @ kernel
    right, wrong = (int(np.sum(np.argmax(s, -1) == columns["y"])) for s in (scores, -scores))
    losses = np.log(np.exp(scores).sum(-1)) - scores[np.arange(len(scores)), columns["y"]]
    return right, wrong, losses.mean()


@pytest.mark.parametrize("case", CASES)
def test_every_executor_counts_every_row_once(case):
    name, settings = CASES[case]
    executor = getattr(importlib.import_module(f"fedjax8.executors.{name}"), name)(**settings)
    for num_rows in (1, 60, 1003):
        columns, kernel = rows_and_kernel(num_rows)
        got = evaluation(linear(), columns, executor)(Variables({"kernel": jnp.asarray(kernel)}, {}))
        right, negated, loss = expected(columns, kernel)
        assert round(got["test_accuracy"] * num_rows, 6) == right
        assert round(got["negated_test_accuracy"] * num_rows, 6) == negated
        assert got["test_loss"] == pytest.approx(loss, rel=1e-5)  # float32 sums
        assert got["largest"] == kernel.max()


@pytest.mark.parametrize("executor", [loop(), chunked(2), vmap(), pmap(3, 2)], ids=["loop", "chunked", "vmap", "pmap"])
def test_a_memory_budget_bounds_the_rows_at_once_and_changes_no_count(executor):
    """The largest array of a row is x, or on one row the kernel: a budget of 20 rows lets no batch be larger."""
    columns, kernel = rows_and_kernel(133)
    seen: list[int] = []
    variables = Variables({"kernel": jnp.asarray(kernel)}, {})
    got = evaluation(linear(seen), columns, executor, bytes_at_once=20 * 4 * FEATURES)(variables)
    assert seen[-1] <= 20 < max(seen)  # the first trace, of one whole batch, measures
    assert round(got["test_accuracy"] * 133, 6) == expected(columns, kernel)[0]
    tight = evaluation(linear(), columns, executor, bytes_at_once=1)(variables)
    assert round(tight["test_accuracy"] * 133, 6) == expected(columns, kernel)[0]


def test_the_largest_array_is_found_inside_of_loops():
    step = lambda x, _: (jnp.sum(jnp.broadcast_to(x, (100, 3))) * x, None)
    assert largest_array(lambda x: jax.lax.scan(step, x, None, length=4), np.float32(1)) == 4 * 100 * 3
    assert largest_array(lambda x: x, np.float32(1)) == 1


def test_no_rows_are_refused_in_a_line():
    columns, _ = rows_and_kernel(3)
    for nothing in ({}, {name: column[:0] for name, column in columns.items()}):
        with pytest.raises(UserError, match="at least one row") as refused:
            evaluation(linear(), nothing, loop())
        assert "\n" not in str(refused.value)


def test_runs_side_by_side_may_be_mapped_at_once(toys):
    """The executor `vmap` over runs: each does what it does by itself."""
    data = toys.clients([1.0, 2.0, 0.5], [0.0, 1.0, -1.0])
    sims = [toys.build(fedavg, data, steps=2)]
    sims.append(toys.build(fedavg, data, steps=2, seed=1, beside=sims[0]))
    states, lines = side_by_side(sims, vmap())([sim.init() for sim in sims], [2, 2])
    for sim, state, found in zip(sims, states, lines, strict=True):
        alone, _ = sim.run_rounds(sim.init(), 2)
        assert found[-1]["round"] == 2
        x, own = (float(sim.variables(s).params["x"]) for s in (state, alone))
        assert x == pytest.approx(own, rel=1e-6)  # float32 sums in another order
