"""Optimizers and learning rates by name, and the checks of a rate that follows a schedule by round."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from fedjax8.config import check_limits, component, is_component
from fedjax8.errors import UserError
from fedjax8.lookup import find, suggest
from fedjax8.types import PyTree

ROUNDS_LOOKED_AT = 4096
"""Rounds, evenly spaced over a run, in which a rate is checked."""
ROUNDING = 1e-6
"""Share of its largest value up to which a schedule that ends at 0 may end beside it."""
STEPS_COMPARED = 24
"""Steps after which optimizers that bound their own step, such as rprop, have reached that bound."""


def find_optimizer(name: str) -> Callable:
    """A server optimizer of `algorithms.server_optimizers`, any optimizer of optax, or `package.module:factory`."""
    from fedjax8.algorithms import server_optimizers

    if ":" in name:
        return find(name)
    for module in (server_optimizers, optax):
        factory = getattr(module, name, None)
        if callable(factory) and not name.startswith("_"):
            return factory
    known = [n for module in (server_optimizers, optax) for n in dir(module) if n[0].islower()]
    raise UserError(f"no optimizer {name!r} in optax{suggest(name, known)}")


def find_schedule(name: str) -> Callable:
    """Any schedule of optax, or `package.module:factory`."""
    if ":" in name:
        return find(name)
    others = "exponential_decay", "join_schedules"
    known = [n for n in dir(optax.schedules) if n in others or (n.endswith("_schedule") and n[0] != "_")]
    if name not in known:
        raise UserError(f"no schedule {name!r} in optax: allowed are {', '.join(known)}{suggest(name, known)}")
    return getattr(optax.schedules, name)


def no_server_schedule(name: str) -> Callable:
    """Always a UserError: a server's rate by round is that of its optimizer."""
    raise UserError(
        "server_learning_rate is a number; for a rate by round set --config.algorithm.name=fedopt "
        f"--config.algorithm.server_optimizer.name=sgd --config.algorithm.server_optimizer.learning_rate.name={name}"
    )


def is_schedule(rate: Any) -> bool:
    """Whether a config's learning rate is a schedule: a component, or a function in a run without files."""
    return is_component(rate) or callable(rate)


def with_rate(optimizer: ConfigDict, rate: float) -> ConfigDict:
    """The optimizer's config with this learning rate."""
    return component(**{**optimizer, "learning_rate": rate})


def check_rates(where: str, schedule: Callable, rounds: int) -> None:
    """Raises UserError unless the schedule gives a rate that is in the limits of `where` in every round, and above 0 in
    one of them."""
    numbers = np.unique(np.linspace(0, rounds - 1, min(rounds, ROUNDS_LOOKED_AT)).astype(np.int32))
    values = np.asarray(jax.vmap(lambda number: jnp.asarray(schedule(number), jnp.float32))(numbers))
    if values.shape != numbers.shape:
        raise UserError(f"{where} must give one number a round, but gives shape {values.shape[1:]}")
    rounded = np.abs(values) <= ROUNDING * np.max(np.abs(values), initial=0.0)
    for number, value in zip(numbers, np.where(rounded, 0.0, values), strict=True):
        try:
            check_limits(where, float(value))
        except UserError as error:
            raise UserError(f"{error} (in round {number + 1})") from None
    if not values.any():
        raise UserError(
            f"{where} is 0 in all {rounds} rounds, so no client would ever move; it must be above 0 in one of them"
        )


def check_proportional(where: str, make: Callable[[float], optax.GradientTransformation]) -> None:
    """Raises UserError unless the steps of `make(learning_rate)` are in proportion to the rate, so that a schedule can
    multiply them.

    A few steps of a small model are compared; an optimizer that cannot take them is left to fail later.
    """
    params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]])}
    gradients = [{"kernel": jnp.array(g)} for g in ([[0.1, 0.2], [-0.3, 1.0]], [[0.2, -0.2], [-0.1, 2.0]])]
    gradients *= STEPS_COMPARED // 2

    def steps(rate: float) -> list[PyTree]:
        optimizer, taken = make(rate), []
        state = optimizer.init(params)
        for gradient in gradients:
            step, state = optimizer.update(gradient, state, params)
            taken.append(step["kernel"])
        return taken

    try:
        whole, half = steps(1.0), steps(0.5)
    except (TypeError, ValueError):
        return
    if not all(np.allclose(0.5 * a, b, rtol=1e-4) for a, b in zip(whole, half, strict=True)):
        raise UserError(
            f"{where}: this optimizer's steps are not in proportion to its learning rate, so that no schedule can "
            "scale them by round; give a number, or another optimizer such as sgd or adam"
        )
