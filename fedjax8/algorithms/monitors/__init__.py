"""Estimates of the variance of workers' models from small messages, one file each; see `base.Monitor`.

With drifts u_k = w_k - w_0 since the last synchronization, every monitor's H is at least (for `sketch`, with a stated
probability) the variance mean ||u_k||^2 - ||mean u_k||^2, so that H <= Theta keeps the variance within Theta.
"""

from fedjax8.algorithms.monitors.exact import exact
from fedjax8.algorithms.monitors.gm import gm
from fedjax8.algorithms.monitors.linear import linear
from fedjax8.algorithms.monitors.naive import naive
from fedjax8.algorithms.monitors.never import never
from fedjax8.algorithms.monitors.periodic import periodic
from fedjax8.algorithms.monitors.sketch import sketch
from fedjax8.algorithms.monitors.synchronous import synchronous

__all__ = ["exact", "gm", "linear", "naive", "never", "periodic", "sketch", "synchronous"]
