"""Workers that keep their models from step to step: their steps, their mean and their variance.

Used by `fda` and `fda_opt`. A worker is a client with a model of its own; its drift is that model minus the last one
that all had in common.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from fedjax8 import trees
from fedjax8.algorithms.layers import layers_of
from fedjax8.data.batches import num_steps
from fedjax8.types import (
    MODEL,
    Array,
    ClientRows,
    Cohort,
    Key,
    Link,
    LocalTraining,
    Partial,
    PyTree,
    Training,
    Variables,
)


class Worker(NamedTuple):
    """State of a worker."""

    variables: Variables
    optimizer: PyTree
    """State of its optimizer."""
    steps: Array
    """int32: steps done, those of others up to the last synchronization included; `[units]` where layers are
    averaged by themselves."""


def start_worker(local: LocalTraining, variables: Variables) -> Worker:
    """A worker before its first step."""
    return Worker(variables, local.optimizer.init(variables.params), jnp.int32(0))


def one_step(
    local: LocalTraining, worker: Worker, origin: PyTree, rows: ClientRows, key: Key
) -> tuple[Worker, dict[str, Array]]:
    """(the worker after one step on a batch of rows drawn by `key`, sums of its report).

    `origin` holds the parameters that all workers had in common last.
    """
    nothing = no_report(local, worker.variables, rows)
    done = local.advance(Training(worker.variables, worker.optimizer, nothing, origin), rows, key, 0, 1)
    return Worker(done.variables, done.optimizer, worker.steps + 1), nan_if_unusable(done.report, done.variables)


def nan_if_unusable(report: dict[str, Array], variables: PyTree) -> dict[str, Array]:
    """`report`, NaN where the model is beyond `trees.LARGEST`, so that the client is excluded as one with NaN is.

    For clients that keep a model, or a part of one, beside their contribution.
    """
    usable = trees.within_bounds(variables)
    return {name: jnp.where(usable, x, jnp.nan) for name, x in report.items()}


def no_report(local: LocalTraining, variables: Variables, rows: ClientRows) -> dict[str, Array]:
    """The report of a worker before its first step: zeros."""
    return local.start(variables, rows).report


def steps_for_all(local: LocalTraining, link: Link, cohort: Cohort, key: Key) -> Array | int:
    """int32: most steps that the batch plan gives any client of the cohort."""
    if local.plan.steps:
        return local.plan.steps
    of_client = lambda _, state, rows, __: (Partial((), num_steps(local.plan, rows.size).astype(jnp.float32)), state)
    return jnp.maximum(link.on_clients(of_client, (), cohort, key)[0].max, 0).astype(jnp.int32)


def squared_norm(tree: PyTree) -> Array:
    """float32 sum of the squares of all values; leaf by leaf, so that no long sum runs in one accumulator."""
    return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), jnp.float32(0))


class Units(NamedTuple):
    """The parts of a model that are watched and averaged by themselves: the whole, or its layers."""

    names: tuple[str, ...]
    split: Callable[[PyTree], dict[str, PyTree]]
    """Params to those of each unit, in a tree `params` of the same paths."""
    put: Callable[[PyTree, str, PyTree], PyTree]
    """`(params, unit, its part) -> params` with that part in place."""
    shares: dict[str, float]
    """Unit to its share of the parameters."""


def units_of(params: PyTree, per_layer: bool) -> Units:
    """The units of a model. A layer is the parameters of one path: a kernel, its bias, their clips."""
    count = sum(x.size for x in jax.tree.leaves(params))
    if not per_layer:
        return Units((MODEL,), lambda p: {MODEL: {"params": p}}, lambda p, _, part: part["params"], {MODEL: 1.0})
    layers = {"/".join(paths[0][:-1]) or MODEL: paths for paths in layers_of(params)}

    def split(tree):
        leaves = flatten_dict(tree)
        return {name: {"params": unflatten_dict({p: leaves[p] for p in paths})} for name, paths in layers.items()}

    def put(tree, _, part):
        return unflatten_dict({**flatten_dict(tree), **flatten_dict(part["params"])})

    leaves = flatten_dict(params)
    shares = {name: sum(leaves[p].size for p in paths) / count for name, paths in layers.items()}
    return Units(tuple(layers), split, put, shares)


def on_all(states: PyTree, tree: PyTree) -> PyTree:
    """`tree` for each of the workers whose states `[c, ...]` are given."""
    count = jax.tree.leaves(states)[0].shape[0]
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree)


def mean_over_workers(
    link: Link,
    cohort: Cohort,
    key: Key,
    shared: PyTree,
    value: Callable[[PyTree, Worker], PyTree],
    weight: Callable[[PyTree, Worker, ClientRows], Array],
) -> tuple[PyTree, Array]:
    """(weighted mean of `value(shared, worker)`, sum of weights), known to the simulator alone.

    The mean is in the values' dtypes, and zeros where nobody has any weight.
    """

    def add(shared, worker, rows, _):
        own = weight(shared, worker, rows)
        weighted = jax.tree.map(lambda x: jnp.where(own > 0, own * x, 0.0), value(shared, worker))
        return Partial((weighted, own)), worker

    total, weights = link.on_clients(add, shared, cohort, key)[0].sum
    like = jax.eval_shape(value, shared, jax.tree.map(lambda x: x[0], cohort.memory))
    divisor = jnp.where(weights > 0, weights, 1.0)
    return jax.tree.map(lambda x, of: trees.as_dtype(x / divisor, of.dtype), total, like), weights


def variances(
    link: Link,
    cohort: Cohort,
    key: Key,
    shared: PyTree,
    drifts: Callable[[PyTree, Worker], dict[str, PyTree]],
    weight: Callable[[PyTree, Worker, ClientRows], Array],
) -> dict[str, Array]:
    """float32 variance of the workers' models about their mean, of each unit: sum_k p_k ||u_k - u||^2.

    In the centered form, by two passes: the mean of norms minus the norm of the mean loses all digits where drifts are
    nearly equal (Theologitis et al. 2024, arXiv 2405.20988, equation 3 has both).
    """
    middle, _ = mean_over_workers(link, cohort, key, shared, drifts, weight)

    def apart(shared, worker):
        shared, middle = shared
        return {
            name: squared_norm(trees.subtract(drift, middle[name])) for name, drift in drifts(shared, worker).items()
        }

    of_weight = lambda shared, worker, rows: weight(shared[0], worker, rows)
    return mean_over_workers(link, cohort, key, (shared, middle), apart, of_weight)[0]
