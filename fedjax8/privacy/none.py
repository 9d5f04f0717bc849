"""No privacy: the gradient of a batch's mean loss."""

from fedjax8.types import StepGradient


def none() -> StepGradient:
    """Steps as they are."""
    return StepGradient()


EXAMPLES = ({},)
