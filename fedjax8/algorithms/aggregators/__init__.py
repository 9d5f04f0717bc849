"""How a server makes one change of the model out of those of many clients, one file each; see `types.Aggregator`.

    mean               everyone counts by weight                    a single client can move it anywhere
    norm_bound         the mean of changes no longer than a bound   f clients of C move it by f / C of the bound at most
    median             per coordinate                               holds while less than half of the clients lie
    trimmed_mean       per coordinate, without both ends            while no more lie than are cut at one end
    krum               the client in the densest company            while C >= 2 f + 3
    geometric_median   the point nearest to all                     while less than half lie

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
