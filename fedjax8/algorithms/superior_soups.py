r"""Local Superior Soups: each client trains a pool of models near the start and apart from each other, and sends their
mean.

    pool <- {x};   n times:   f <- mean(pool), which joins the pool;   for every step of the batch plan:
        s   = sum_j a_j pool_j,  a uniform on the simplex
        f  <- f - eta grad_f [ loss(s) + affinity |f - x|  - diversity mean_j |f - pool_j| ]

Chen et al. 2024, "Local Superior Soups: A catalyst for model merging in cross-silo federated learning", arXiv
2410.23660 (NeurIPS 2024), in two forms:

    paper   as above, Euclidean distances
    code    that of the authors' code: affinity |f - x|^2; diversity the volume of the simplex that the pool spans, by
            the determinant of Gram, which is Cayley's and Menger's; none of it for the first member; later members
            take an eighth of the steps. The code also sums gradients over 15 batches, which is not here.

Weights a are normalized exponentials. The gradient of a distance, or volume, of 0 counts as 0: f begins at such a
point. For few rounds from a pre-trained start.

Traffic: as FedAvg. A round takes n times the steps (code: 1 + (n - 1) / 8 times), and memory for n + 1 models of the
clients that a device works on at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import PAYLOADS, WEIGHTINGS, averaging_server, client_weight
from fedjax8.algorithms.lockstep import squared_norm
from fedjax8.algorithms.parts import ClientOutput, check_choice, from_parts, outgoing
from fedjax8.algorithms.refinements.none import none
from fedjax8.data.batches import num_steps
from fedjax8.given import checked
from fedjax8.local import check_not_kept, check_restarts
from fedjax8.types import Aggregator, Algorithm, Array, Key, LocalTraining, PyTree, Training, Variables

FORMS = ("paper", "code")
USUAL = {"paper": (3.0, 3.0), "code": (1e-5, 0.1)}
"""Affinity and diversity of each form."""
MOST_MODELS = 16
LATER = 8
"""Of the code: members after the first take so many times fewer steps."""
_FLAT = -11.5
"""Logarithm of a determinant of edges of length 1, some 1e-5, below which it is rounding."""
_LONGEST = 60.0
"""Logarithm of a volume, far within float32."""
_WEIGHTS = (1 << 31) - 5
"""Folded into a step's key for the weights of the interpolation."""


class Pool(NamedTuple):
    """A client's models, stacked."""

    params: PyTree
    """`[n + 1, ...]`, the received model first."""
    state: PyTree
    """The model's state as of the last step."""
    report: dict[str, Array]


@checked
def superior_soups(
    local: LocalTraining,
    models: int = 4,
    *,
    form: str = "paper",
    affinity: float | None = None,
    diversity: float | None = None,
    server_learning_rate: float = 1.0,
    payload: str = "params",
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Averaging of pools.

    Args:
      local: the clients' local training; the batch plan's steps are those of one member (8 in the paper).
      models: n, members beside the received one, from 1 to MOST_MODELS.
      form: `paper` or `code`.
      affinity, diversity: weights of the two terms, from 0 up; None: 3 and 3 as in the paper, or 1e-5 and 0.1 as in
        examples of the code.
      server_learning_rate, payload, weighting, model_state, aggregate: as in `fedavg`.

    Raises:
      UserError: in the first round, if privacy is accounted, since a client takes other steps than its batch plan's.
    """
    for name, given, allowed in (("form", form, FORMS), ("payload", payload, PAYLOADS)):
        check_choice(name, given, allowed)
    check_choice("weighting", weighting, WEIGHTINGS)
    if form == "code" and models == 1 and diversity is not None:
        raise ValueError(f"diversity={diversity} changes nothing: the code's first member has none; leave it out")
    affinity, diversity = (
        usual if x is None else x for x, usual in zip((affinity, diversity), USUAL[form], strict=True)
    )
    if not 1 <= models <= MOST_MODELS or not (0 <= affinity < float("inf") and 0 <= diversity < float("inf")):
        raise ValueError(
            f"models must be from 1 to {MOST_MODELS}, affinity and diversity from 0 up; got {models}, {affinity} and "
            f"{diversity}"
        )
    check_not_kept(local, "every member of a pool has an optimizer of its own")

    def steps_of(member: Array | int, size: Array) -> Array:
        count = num_steps(local.plan, size)
        return jnp.where(member == 0, count, -(-count // LATER)) if form == "code" else count

    def terms(pool: PyTree, f: PyTree, place: Array) -> PyTree:
        """The gradient of both terms by f, the member at `place`; the pool has those before it."""
        if form == "paper":
            toward = direction(f, jax.tree.map(lambda x: x[0], pool))
            away = [direction(f, jax.tree.map(lambda x, j=j: x[j], pool)) for j in range(models)]
            there = jnp.arange(models) < place
            apart = jax.tree.map(lambda *of: jnp.tensordot(there / jnp.maximum(place, 1), jnp.stack(of), 1), *away)
            return jax.tree.map(lambda a, d: affinity * a - diversity * d, toward, apart)
        start = jax.tree.map(lambda x: x[0], pool)
        toward = trees.scale(2.0 * affinity, trees.subtract(f, start))
        wider = jax.grad(volume)(f, pool, place)
        later = jnp.where(place > 1, diversity, 0.0)
        return jax.tree.map(lambda a, d: a - later * d, toward, wider)

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        def member(index: Array, pool: Pool) -> Pool:
            place = index + 1
            there = jnp.arange(models + 1) < place
            f = jax.tree.map(lambda x: jnp.tensordot(there / place, x, 1), pool.params)
            own_key = jax.random.fold_in(key, index)

            def step(at: Array, training: Training) -> Training:
                def adjust(_: PyTree, params: PyTree, batch: PyTree, step_key: Key) -> PyTree:
                    weights = on_simplex(jax.random.fold_in(step_key, _WEIGHTS), jnp.arange(models + 1) <= place)
                    others = weights.at[place].set(0.0)
                    mix = lambda x, own: jnp.tensordot(others, x, 1) + weights[place] * own
                    mixed = jax.tree.map(mix, pool.params, params)
                    gradients = local.gradient(Variables(mixed, training.variables.state), rows, batch, step_key)
                    return trees.add(trees.scale(weights[place], gradients), terms(pool.params, params, place))

                return local.advance(training, rows, own_key, at, 1, adjust=adjust)

            begun = local.start(Variables(f, pool.state), rows)
            check_restarts(begun.optimizer)
            done = jax.lax.fori_loop(0, steps_of(index, rows.size), step, begun)
            params = jax.tree.map(lambda x, new: x.at[place].set(new), pool.params, done.variables.params)
            return Pool(params, done.variables.state, trees.add(pool.report, done.report))

        stacked = jax.tree.map(lambda x: jnp.zeros((models + 1, *x.shape)).at[0].set(x), start.params)
        empty = Pool(stacked, start.state, local.start(start, rows).report)
        done = jax.lax.fori_loop(0, models, member, empty)
        soup = jax.tree.map(lambda x: jnp.mean(x, axis=0), done.params)
        soup = local.model.project(soup)
        sent = outgoing(payload, soup, start.params)
        weight = client_weight(weighting, rows.size)
        return ClientOutput(sent, weight, Variables(soup, done.state), memory, done.report)

    def all_steps(size: Array) -> Array:
        return sum((steps_of(i, size) for i in range(models)), jnp.zeros_like(jnp.asarray(size)))

    return from_parts(
        local,
        client=client,
        server=averaging_server(local, payload, server_learning_rate, none()),
        model_state=model_state,
        aggregate=aggregate,
        steps=all_steps,
    )


def on_simplex(key: Key, there: Array) -> Array:
    """float32 `[m]`: weights uniform on the simplex of the members that are there; 0 for others."""
    draws = jnp.where(there, jax.random.exponential(key, there.shape), 0.0)
    return draws / jnp.sum(draws)


def direction(a: PyTree, b: PyTree) -> PyTree:
    """The gradient of |a - b| by a: the unit vector from b to a; zeros where they are equal."""
    apart = trees.subtract(a, b)
    norm = jnp.sqrt(squared_norm(apart))
    return trees.scale(jnp.where(norm > 0, 1.0 / jnp.where(norm > 0, norm, 1.0), 0.0), apart)


def volume(f: PyTree, pool: PyTree, place: Array) -> Array:
    """Volume of the simplex of the first `place` models of the pool and f: sqrt(det G) / place!, G the products of the
    edges from the first.

    By logarithms, of edges of length 1, so that neither many long nor many short ones leave float32. Its gradient is 0
    where the volume is, or cannot be told from 0, and beyond `_LONGEST`.
    """
    edges = jax.tree.map(lambda x, own: x.at[place].set(own)[1:] - x[0], pool, f)
    flat = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(edges)]
    count = flat[0].shape[0]
    there = jnp.arange(count) < place
    products = sum((jnp.dot(x, x.T, precision="highest") for x in flat), jnp.zeros((count, count)))
    gram = jnp.where(there[:, None] & there[None, :], products, jnp.eye(count))
    squares = jnp.diagonal(gram)
    spans = jnp.all(squares > 0)
    lengths = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    angles = jnp.where(spans, gram / lengths[:, None] / lengths[None, :], jnp.eye(count))
    solid = spans & (jnp.linalg.slogdet(angles)[1] > _FLAT)
    logarithm = jnp.linalg.slogdet(jnp.where(solid, angles, jnp.eye(count)))[1] / 2 + jnp.sum(jnp.log(lengths))
    logarithm -= jax.lax.lgamma(place.astype(jnp.float32) + 1.0)
    return jnp.where(solid, jnp.exp(jnp.minimum(logarithm, _LONGEST)), 0.0)


EXAMPLES = ({"models": 2}, {"models": 2, "form": "code", "affinity": 1e-5, "diversity": 0.1, "payload": "update"})
