"""Local training of one client: masked mini-batch steps with any optax optimizer, as one pure function.

    for s in 0 .. S - 1:   g = gradient of the batch's mean loss at y;   y <- project(y - optimizer(adjust(g, y)))

The number of steps is the client's own: the loop is bounded by it, so a small client costs little, and under `vmap`
finished clients keep still while the longest one goes on.

`proximal` and `scheduled` wrap a local training, for every algorithm:

    proximal(local, mu)          g <- g + mu (y - x),  x the model that training started from
    scheduled(local, schedule)   y <- y - schedule(round) * optimizer(g)
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax

from fedjax8 import trees
from fedjax8.data.batches import num_steps, steps_per_epoch, take_batch
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.keys import random_key
from fedjax8.types import (
    Adjust,
    Array,
    Batch,
    BatchGradient,
    BatchLoss,
    BatchPlan,
    ClientRows,
    Key,
    LocalTraining,
    Model,
    Multiply,
    Pool,
    PyTree,
    StepGradient,
    Trained,
    Training,
    Variables,
)


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of `values` `[B]` where mask is 1; 0 if it is nowhere."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def _loss_and_sums(
    model: Model, variables: Variables, batch: Batch, key: Key, multiply: Multiply | None = None
) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
    """Mean loss, with (new model state, sums of loss and metrics over the batch's examples)."""
    outputs, state = model.apply(variables, batch, key=key, train=True, multiply=multiply)
    losses, mask = model.loss(outputs, batch), batch["mask"]
    sums = {f"train_{name}": jnp.sum(v * mask) for name, v in model.metrics(outputs, batch).items()}
    sums |= {"train_loss": jnp.sum(losses * mask), "train_examples": jnp.sum(mask)}
    return masked_mean(losses, mask), (state, sums)


def _plain_gradient(loss: BatchLoss) -> BatchGradient:
    """The gradient of a batch's mean loss."""
    loss_and_grad = jax.value_and_grad(
        lambda params, state, frozen, batch, key: loss(Variables(params, state, frozen), batch, key), has_aux=True
    )

    def gradient(
        variables: Variables, batch: Batch, key: Key, expected: Array | None
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        (_, (state, sums)), gradients = loss_and_grad(*variables, batch, key)
        return gradients, state, sums

    return gradient


def _refuse(what: str) -> NoReturn:
    raise UserError(f"this algorithm {what}, which the accounting of private gradients does not cover")


def _refused(what: str) -> Callable[..., NoReturn]:
    """A function that accounting does not cover: UserError whenever it is called."""
    return lambda *_, **__: _refuse(what)


class _Withheld(Mapping[str, Array]):
    """A batch that may not be read beside private gradients: UserError whenever it is."""

    def __getitem__(self, name: str) -> NoReturn:
        _refuse("reads the batch of a step")

    def __or__(self, other: Any) -> NoReturn:
        _refuse("reads the batch of a step")

    def __iter__(self) -> Iterator[str]:
        _refuse("reads the batch of a step")

    def __len__(self) -> int:
        _refuse("reads the batch of a step")


_OWN_DRAWS = (1 << 31) - 3
"""Folded into a step's key for draws of `adjust` beside private gradients, whose noise is drawn from that key."""


def check_restarts(optimizer_state: PyTree) -> None:
    """Raises UserError if an optimizer with such an initial state follows a schedule, which every new state restarts.

    The counts by which optimizers such as adam correct their moments are none.
    """
    kinds = (optax.ScaleByScheduleState, optax.InjectStatefulHyperparamsState)
    nodes = jax.tree.leaves(optimizer_state, is_leaf=lambda x: isinstance(x, kinds))
    if any(isinstance(x, kinds[0]) or (isinstance(x, kinds[1]) and x.hyperparams_states) for x in nodes):
        raise UserError(
            "the clients' optimizer follows a schedule of its own, but its state is fresh each round, so the schedule "
            "would restart every round; count rounds instead: scheduled(local_training(model, optax.sgd(1.0), plan), "
            "schedule), or keep the state: local_training(..., keep_optimizer=True)"
        )


def check_not_kept(local: LocalTraining, what: str) -> None:
    """Raises UserError if clients are to keep their optimizer's state, for which `what` leaves them no place."""
    if local.keep_optimizer:
        raise UserError(
            f"keep_optimizer=True changes nothing here: {what}; leave it out, or take an algorithm such as fedavg"
        )


@checked
def local_training(
    model: Model,
    optimizer: optax.GradientTransformation,
    plan: BatchPlan,
    gradient: StepGradient | None = None,
    *,
    keep_optimizer: bool = False,
) -> LocalTraining:
    """Local training of `model` by `optimizer` on batches cut by `plan`.

    Args:
      model: the model that is trained.
      optimizer: any of optax, whose state is fresh each round unless it is kept.
      plan: the batch plan.
      gradient: the rule by which a step's gradient is taken and its batch drawn, such as `privacy.dp_sgd(...)`. Where
        that is accounted for, only `train` may be used, and `adjust` may not read the batch: UserError.
      keep_optimizer: each client keeps the optimizer's state from one of its rounds to the next, in algorithms made by
        `algorithms.from_parts`; others raise UserError. Costs memory for every registered client.

    Guarantee: a client without examples returns its variables unchanged.

    Raises:
      UserError: in the first round, if the optimizer follows a schedule that would restart every round.
    """
    rule = StepGradient() if gradient is None else gradient
    plan = plan if rule.sampling is None else plan._replace(sampling=rule.sampling)
    gradient_of = (rule.make or _plain_gradient)(functools.partial(_loss_and_sums, model))

    def one_step(
        variables: Variables, rows: ClientRows, batch: Batch, key: Key
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        return gradient_of(variables._replace(frozen=rows.pool.frozen), batch, key, expected(rows))

    def expected(rows: ClientRows) -> Array | None:
        return jnp.clip(rows.size, 1, plan.batch_size).astype(jnp.float32) if rule.make else None

    def start(variables: Variables, rows: ClientRows) -> Training:
        batch = jax.eval_shape(lambda: take_batch(plan, rows, None, jnp.int32(0)))
        sums = jax.eval_shape(one_step, variables, rows, batch, random_key(0))[2]
        state = optimizer.init(variables.params)
        return Training(variables, state, trees.zeros_like(sums), variables.params)

    def adjusted(adjust: Adjust, gradients: PyTree, params: PyTree, batch: Batch, key: Key) -> PyTree:
        if rule.accounted:
            withheld: Any = _Withheld()
            return adjust(gradients, params, withheld, jax.random.fold_in(key, _OWN_DRAWS))
        return adjust(gradients, params, batch, key)

    def advance(
        training: Training,
        rows: ClientRows,
        key: Key,
        first: Array | int,
        count: Array | int,
        *,
        adjust: Adjust | None = None,
        step_scale: Array | float = 1.0,
    ) -> Training:
        shuffle_key, step_key = jax.random.split(key)
        origin = training.origin

        def step(index: Array | int, training: Training) -> Training:
            variables, optimizer_state, sums, _ = training
            batch, own_key = take_batch(plan, rows, shuffle_key, index), jax.random.fold_in(step_key, index)
            gradients, state, new = one_step(variables, rows, batch, own_key)
            if adjust is not None:
                gradients = adjusted(adjust, gradients, variables.params, batch, own_key)
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, variables.params)
            params = optax.apply_updates(variables.params, trees.scale(step_scale * rows.pool.step_scale, updates))
            return Training(Variables(model.project(params), state), optimizer_state, trees.add(sums, new), ())

        training = training._replace(origin=())  # stays as it is, and so outside of the loop
        if isinstance(count, int) and count == 1:
            return step(first, training)._replace(origin=origin)
        after: Training = jax.lax.fori_loop(first, first + count, step, training)
        return after._replace(origin=origin)

    def train(
        variables: Variables,
        rows: ClientRows,
        key: Key,
        *,
        adjust: Adjust | None = None,
        step_scale: Array | float = 1.0,
    ) -> Trained:
        steps, training = num_steps(plan, rows.size), start(variables, rows)
        if not keep_optimizer:
            check_restarts(training.optimizer)
        elif not jax.tree.leaves(rows.optimizer):
            check_not_kept(done, "this algorithm's clients have no place to keep it")
        else:
            training = training._replace(optimizer=rows.optimizer)
        after = advance(training, rows, key, 0, steps, adjust=adjust, step_scale=step_scale)
        return Trained(after.variables, steps, after.report, after.optimizer if keep_optimizer else ())

    def gradient_at(variables: Variables, rows: ClientRows, batch: Batch, key: Key) -> PyTree:
        return one_step(variables, rows, batch, key)[0]

    def over_all(add: Callable[[Batch, PyTree], PyTree], rows: ClientRows, zeros: PyTree) -> PyTree:
        """The mean over a client's examples; `add(batch, total)` adds the sum over a batch's."""
        sum_up = lambda index, total: add(take_batch(plan, rows, None, index), total)
        total = jax.lax.fori_loop(0, steps_per_epoch(plan, rows.size), sum_up, zeros)
        return trees.scale(1.0 / jnp.maximum(rows.size, 1), total)

    def full_gradient(variables: Variables, rows: ClientRows, key: Key) -> PyTree:
        def add_batch(batch: Batch, total: PyTree) -> PyTree:
            gradients = one_step(variables, rows, batch, key)[0]
            return trees.add(total, trees.scale(jnp.sum(batch["mask"]), gradients))

        return over_all(add_batch, rows, trees.zeros_like(variables.params))

    def mean_loss(variables: Variables, rows: ClientRows) -> Array:
        def add_batch(batch: Batch, total: PyTree) -> PyTree:
            outputs, _ = model.apply(variables._replace(frozen=rows.pool.frozen), batch)
            return total + jnp.sum(model.loss(outputs, batch) * batch["mask"])

        mean: Array = over_all(add_batch, rows, jnp.float32(0))
        return mean

    done = LocalTraining(
        train, full_gradient, gradient_at, mean_loss, model, start, advance, optimizer, plan, keep_optimizer
    )
    if rule.accounted:
        return done._replace(
            full_gradient=_refused("takes a gradient of all rows (SCAFFOLD with option='II' does not)"),
            gradient=_refused("takes a gradient of its own at a step"),
            mean_loss=_refused("reads the loss of all rows"),
            advance=_refused("takes steps as it goes, and not those of the batch plan"),
        )
    return done


StepTerms = tuple[Adjust | None, Array | float]
"""`adjust` and `step_scale` of local steps, as in `types.Train`."""


def with_steps(
    local: LocalTraining, change: Callable[[ClientRows, PyTree, Adjust | None, Array | float], StepTerms]
) -> LocalTraining:
    """`local` whose every step has other terms, in whole trainings and in parts of them.

    `change` maps `(rows, origin, adjust, step_scale)` to the (adjust, step_scale) that `local` is called with; `origin`
    are the parameters that training started from.
    """

    def train(
        variables: Variables,
        rows: ClientRows,
        key: Key,
        *,
        adjust: Adjust | None = None,
        step_scale: Array | float = 1.0,
    ) -> Trained:
        adjust, step_scale = change(rows, variables.params, adjust, step_scale)
        return local.train(variables, rows, key, adjust=adjust, step_scale=step_scale)

    def advance(
        training: Training,
        rows: ClientRows,
        key: Key,
        first: Array | int,
        count: Array | int,
        *,
        adjust: Adjust | None = None,
        step_scale: Array | float = 1.0,
    ) -> Training:
        adjust, step_scale = change(rows, training.origin, adjust, step_scale)
        return local.advance(training, rows, key, first, count, adjust=adjust, step_scale=step_scale)

    return local._replace(train=train, advance=advance)


@checked
def proximal(local: LocalTraining, mu: float) -> LocalTraining:
    """`local` whose clients are held near the model that they started from: mu (y - x) is added to every gradient.

    That is the gradient of mu/2 ||y - x||^2 (Li et al. 2020, arXiv 1812.06127, section 4). It comes after an
    algorithm's own correction of the gradient. With mu = 0 it is `local` itself; several add up. FDA's workers are
    held near the last model that all had in common.

    Example:
      >>> fedadam_with_pull = lambda local: fedopt(proximal(local, 0.1))
    """
    if not 0 <= mu < float("inf"):
        raise ValueError(f"mu must be a number from 0 up, got {mu}")
    if mu == 0:
        return local

    def pulled(rows: ClientRows, origin: PyTree, adjust: Adjust | None, step_scale: Array | float) -> StepTerms:
        def pull(gradients: PyTree, params: PyTree, batch: Batch, key: Key) -> PyTree:
            if adjust is not None:
                gradients = adjust(gradients, params, batch, key)
            return jax.tree.map(lambda g, y, x: g + mu * (y - x), gradients, params, origin)

        return pull, step_scale

    return with_steps(local, pulled)._replace(pull=local.pull + mu)


@checked
def scheduled(local: LocalTraining, schedule: Callable[[Array], Array | float]) -> LocalTraining:
    """`local` whose every update is multiplied by `schedule(round)`, rounds counted from 0.

    `schedule` is any of optax. Its values are the clients' learning rates if the optimizer of `local` has the rate 1,
    and factors on the optimizer's own rate otherwise; several are multiplied.

    Example:
      >>> import optax
      >>> cosine = lambda local: scheduled(local, optax.cosine_decay_schedule(1.0, decay_steps=60))
    """

    def factor(pool: Pool) -> Array | float:
        return schedule(jnp.asarray(pool.round_number))

    def scaled(rows: ClientRows, origin: PyTree, adjust: Adjust | None, step_scale: Array | float) -> StepTerms:
        return adjust, step_scale * factor(rows.pool)

    return with_steps(local, scaled)._replace(rate=lambda pool: local.rate(pool) * factor(pool))
