"""Aggregation rules: one change of the model from those of many clients, one file each; see `types.Aggregator`.

    mean               all clients, by weight                       a single client can move it anywhere
    norm_bound         the mean of changes no longer than a bound   f clients of C move it by f / C of the bound at most
    median             per coordinate                               holds for fewer than half Byzantine clients
    trimmed_mean       per coordinate, without both ends            for no more than are cut at one end
    krum               the client with the nearest neighbors        for C >= 2 f + 3
    geometric_median   the point nearest to all                     for less than half

Used by `fedavg(aggregate=krum(byzantine=2))` and its kin. All see decoded messages, after clients whose contribution is
not finite were left out, and count no client without examples.
"""

from fedjax8.algorithms.aggregators.geometric_median import geometric_median
from fedjax8.algorithms.aggregators.krum import krum
from fedjax8.algorithms.aggregators.mean import mean
from fedjax8.algorithms.aggregators.median import median
from fedjax8.algorithms.aggregators.norm_bound import norm_bound
from fedjax8.algorithms.aggregators.trimmed_mean import trimmed_mean

__all__ = ["geometric_median", "krum", "mean", "median", "norm_bound", "trimmed_mean"]
