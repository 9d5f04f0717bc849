"""One client's training: masked mini-batch steps with any optax optimizer, as one pure function.

    for s in 0 .. S - 1:   g = gradient of the batch's mean loss at y;   y <- project(y - optimizer(adjust(g, y)))

The number of steps is the client's own: the loop is bounded by it, so a small client costs little, and under `vmap`
finished clients keep still while the longest one goes on.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax8 import trees
from fedjax8.data.batches import num_steps, steps_per_epoch, take_batch
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.keys import random_key
from fedjax8.types import (
    Array,
    Batch,
    BatchPlan,
    Key,
    LocalTraining,
    Model,
    Multiply,
    StepGradient,
    Trained,
    Training,
    Variables,
)


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of `values` `[B]` where mask is 1; 0 if it is nowhere."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def _loss_and_sums(model: Model, variables: Variables, batch: Batch, key: Key, multiply: Multiply | None = None):
    """Mean loss, with (new model state, sums of loss and metrics over the batch's examples)."""
    outputs, state = model.apply(variables, batch, key=key, train=True, multiply=multiply)
    losses, mask = model.loss(outputs, batch), batch["mask"]
    sums = {f"train_{name}": jnp.sum(v * mask) for name, v in model.metrics(outputs, batch).items()}
    sums |= {"train_loss": jnp.sum(losses * mask), "train_examples": jnp.sum(mask)}
    return masked_mean(losses, mask), (state, sums)


def _plain_gradient(loss: Callable) -> Callable:
    """`gradient(variables, batch, key, expected)` of a `loss` as in `StepGradient.make`."""
    loss_and_grad = jax.value_and_grad(
        lambda params, state, frozen, batch, key: loss(Variables(params, state, frozen), batch, key), has_aux=True
    )

    def gradient(variables, batch, key, expected):
        (_, (state, sums)), gradients = loss_and_grad(*variables, batch, key)
        return gradients, state, sums

    return gradient


def _refused(what: str) -> Callable:
    """Stands in for what accounting does not cover."""

    def refuse(*_, **__):
        raise UserError(f"this algorithm {what}, which the accounting of private gradients does not cover")

    return refuse


@checked
def local_training(
    model: Model, optimizer: optax.GradientTransformation, plan: BatchPlan, gradient: StepGradient | None = None
) -> LocalTraining:
    """Local training of `model` by `optimizer` on batches cut by `plan`. The optimizer's state is fresh each time.

    `gradient` says how a step's gradient is taken and its batch drawn, such as `privacy.dp_sgd(...)`. Where that is
    accounted for, only `train` may be used: the others raise UserError.

    Guarantee: a client without examples returns its variables unchanged.
    """
    rule = StepGradient() if gradient is None else gradient
    plan = plan if rule.sampling is None else plan._replace(sampling=rule.sampling)
    gradient_of = (rule.make or _plain_gradient)(functools.partial(_loss_and_sums, model))

    def one_step(variables, rows, batch, key):
        return gradient_of(variables._replace(frozen=rows.pool.frozen), batch, key, expected(rows))

    def expected(rows) -> Array | None:
        return jnp.clip(rows.size, 1, plan.batch_size).astype(jnp.float32) if rule.make else None

    def start(variables, rows) -> Training:
        batch = jax.eval_shape(lambda: take_batch(plan, rows, None, jnp.int32(0)))
        sums = jax.eval_shape(one_step, variables, rows, batch, random_key(0))[2]
        return Training(variables, optimizer.init(variables.params), trees.zeros_like(sums))

    def advance(training, rows, key, first, count, *, adjust=None, step_scale=1.0) -> Training:
        shuffle_key, step_key = jax.random.split(key)

        def step(index, training):
            variables, optimizer_state, sums = training
            batch = take_batch(plan, rows, shuffle_key, index)
            gradients, state, new = one_step(variables, rows, batch, jax.random.fold_in(step_key, index))
            if adjust is not None:
                gradients = adjust(gradients, variables.params)
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, variables.params)
            params = optax.apply_updates(variables.params, trees.scale(step_scale * rows.pool.step_scale, updates))
            return Training(Variables(model.project(params), state), optimizer_state, trees.add(sums, new))

        if isinstance(count, int) and count == 1:
            return step(first, training)
        return jax.lax.fori_loop(first, first + count, step, training)

    def train(variables, rows, key, *, adjust=None, step_scale=1.0) -> Trained:
        steps = num_steps(plan, rows.size)
        done = advance(start(variables, rows), rows, key, 0, steps, adjust=adjust, step_scale=step_scale)
        return Trained(done.variables, steps, done.report)

    def full_gradient(variables, rows, key):
        def add_batch(index, total):
            batch = take_batch(plan, rows, None, index)
            gradients = one_step(variables, rows, batch, key)[0]
            return trees.add(total, trees.scale(jnp.sum(batch["mask"]), gradients))

        total = jax.lax.fori_loop(0, steps_per_epoch(plan, rows.size), add_batch, trees.zeros_like(variables.params))
        return trees.scale(1.0 / jnp.maximum(rows.size, 1), total)

    done = LocalTraining(train, full_gradient, model, start, advance, optimizer, plan)
    if rule.accounted:
        return done._replace(
            full_gradient=_refused("takes a gradient of all rows (SCAFFOLD with option='II' does not)"),
            advance=_refused("takes steps as it goes, and not those of the batch plan"),
        )
    return done
