"""No refinement: the average is the new model. With FP8 clients and messages: FP8FedAvg-UQ."""

from fedjax8.algorithms.refinements.base import Refinement


def none() -> Refinement:
    """The step that leaves the average as it is."""
    return Refinement(watch=lambda params: (), step=lambda key, params, lowest, highest: (params, {}))


EXAMPLES = ({},)
