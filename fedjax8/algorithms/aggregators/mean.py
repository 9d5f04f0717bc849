"""The weighted mean: sum_i p_i d_i, p_i = w_i / sum_j w_j. The rule of algorithms without an aggregator.

Breakdown point 0: one client can move it anywhere. Memory: one running sum, whatever the cohort.
"""

from fedjax8.types import Aggregator


def mean() -> Aggregator:
    """The aggregator that averages."""
    return Aggregator()


EXAMPLES = ({},)
