"""Noisy SGD without a guarantee, as in the experiment code of FedPEFT under the name of differential privacy (Sun et
al., arXiv 2210.01708; code of late 2022).

    g = gradient of the batch's mean loss + N(0, sigma^2 I),     sigma = 2 c sqrt(2 ln(1.25 / delta) / epsilon)

It serves to repeat such experiments. Nothing is bounded (that code's call to clip finds no gradient to clip), so no
amount of noise protects an example; epsilon stands inside the root, where the Gaussian mechanism has it outside; steps
and rounds are not composed. Hence there is no epsilon in the log. Use `dp_sgd` for a guarantee.
"""

import math

import jax

from fedjax8.privacy.accounting import check_delta
from fedjax8.privacy.gaussian import add_noise
from fedjax8.types import BatchGradient, BatchLoss, StepGradient


def noisy_sgd(nominal_epsilon: float = 5.0, *, nominal_delta: float = 1e-3, nominal_clip: float = 1.0) -> StepGradient:
    """Steps with the noise that these three numbers give by the formula above, 3.378 for the defaults, the code's own.

    Raises:
      ValueError: a setting out of range.
    """
    check_delta(nominal_delta)
    if not (nominal_epsilon > 0 and nominal_clip > 0):
        raise ValueError(f"nominal_epsilon and nominal_clip must be above 0; got {nominal_epsilon} and {nominal_clip}")
    sigma = 2 * nominal_clip * math.sqrt(2 * math.log(1.25 / nominal_delta) / nominal_epsilon)

    def make(loss: BatchLoss) -> BatchGradient:
        def gradient(variables, batch, key, expected):
            gradient_key, noise_key = jax.random.split(key)
            of_params = lambda params: loss(variables._replace(params=params), batch, gradient_key)
            (_, (state, sums)), found = jax.value_and_grad(of_params, has_aux=True)(variables.params)
            return add_noise(noise_key, found, sigma), state, sums

        return gradient

    return StepGradient(make)


EXAMPLES = ({}, {"nominal_epsilon": 10.0})
