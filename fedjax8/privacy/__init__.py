"""Differential privacy: per-example gradients, clipping, Gaussian noise, and accounting.

`dp_sgd` protects an example of a client; `algorithms.dp_fedavg` a whole client. `noisy_sgd` protects nothing.
"""

from fedjax8.privacy.accounting import Facts, accounted, calibrate, cohort, epsilon, rate
from fedjax8.privacy.dp_sgd import dp_sgd
from fedjax8.privacy.noisy_sgd import noisy_sgd
from fedjax8.privacy.none import none

__all__ = ["Facts", "accounted", "calibrate", "cohort", "dp_sgd", "epsilon", "noisy_sgd", "none", "rate"]
