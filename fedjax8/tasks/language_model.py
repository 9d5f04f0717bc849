"""The next token at every position of a sequence, by softmax cross-entropy."""

from collections.abc import Sequence

from fedjax8.models.linen import cross_entropy
from fedjax8.tasks.base import Metric, Task, task_of
from fedjax8.tasks.metrics.accuracy import accuracy
from fedjax8.tasks.metrics.perplexity import perplexity
from fedjax8.types import CLASSES


def language_model(metrics: Sequence[Metric] = ()) -> Task:
    """The task of predicting the next token. A row's loss is the mean over its targets; -1 marks a position without.

    Args:
      metrics: in place of the usual ones, `perplexity` and `accuracy`; the first is the main one.
    """
    return task_of("language_model", CLASSES, cross_entropy, metrics, (perplexity(), accuracy()))


EXAMPLES = ({},)
