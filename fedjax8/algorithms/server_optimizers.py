"""Server optimizers of the adaptive federated methods as optax transformations.

Reddi et al. 2021, arXiv 2003.00295, algorithm 2.

With D the mean update, as optax sees it the gradient is -D:

    M <- b1 M + (1 - b1) D
    V <- V + D^2                                  (fedadagrad)
    V <- b2 V + (1 - b2) D^2                      (fedadam)
    V <- V - (1 - b2) D^2 sign(V - D^2)           (fedyogi)
    x <- x + eta_s M / (sqrt(V) + tau)

V starts at tau^2 and there is no bias correction, unlike in `optax.adam`, `yogi` and `adagrad`, which serve as server
optimizers as well. FedAvgM is `optax.sgd` with momentum. eta_s may be a schedule, which counts
the server's steps: rounds in which a contribution was used.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax8.types import Array, PyTree

SecondMoment = Callable[[Array, Array], Array]
Rate = float | Callable[[Array], Array | float]


class AdaptiveState(NamedTuple):
    """Moments of the mean update, float32, shaped like the parameters."""

    first: PyTree
    second: PyTree


def _adaptive(learning_rate: Rate, b1: float, tau: float, second: SecondMoment) -> optax.GradientTransformation:
    if not (0 <= b1 < 1 and tau > 0):
        raise ValueError(f"need 0 <= b1 < 1 and tau > 0, got b1={b1}, tau={tau}")
    if callable(learning_rate):
        return optax.chain(_adaptive(1.0, b1, tau, second), optax.scale_by_schedule(learning_rate))
    if isinstance(learning_rate, str) or not jnp.isfinite(learning_rate):
        raise ValueError(f"learning_rate must be a number or a schedule, got {learning_rate!r}")

    def init(params):
        return AdaptiveState(
            jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda p: jnp.full_like(p, tau**2), params)
        )

    def update(gradients, state, params=None):
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, gradients)
        moment = jax.tree.map(lambda v, g: second(v, g * g), state.second, gradients)
        steps = jax.tree.map(lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), first, moment)
        return steps, AdaptiveState(first, moment)

    return optax.GradientTransformation(init, update)


def fedadagrad(learning_rate: Rate = 0.1, b1: float = 0.0, tau: float = 1e-3) -> optax.GradientTransformation:
    """FedAdagrad's server step."""
    return _adaptive(learning_rate, b1, tau, lambda v, d2: v + d2)


def fedadam(
    learning_rate: Rate = 0.1, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """FedAdam's server step."""
    return _adaptive(learning_rate, b1, tau, lambda v, d2: b2 * v + (1 - b2) * d2)


def fedyogi(
    learning_rate: Rate = 0.01, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """FedYogi's server step."""
    return _adaptive(learning_rate, b1, tau, lambda v, d2: v - (1 - b2) * d2 * jnp.sign(v - d2))


def fedavgm(learning_rate: Rate = 1.0, momentum: float = 0.9) -> optax.GradientTransformation:
    """FedAvgM's server step: v <- momentum v - D; x <- x - eta_s v."""
    return optax.sgd(learning_rate, momentum=momentum)
