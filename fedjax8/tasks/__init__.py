"""Tasks: the loss and the metrics that a model is trained and judged by. One file each; see `base.Task`.

    classification    one class of several                    accuracy
    binary            yes or no, by one output                accuracy
    multilabel        any number of labels                    macro_f1, label_accuracy
    regression        numbers                                 mae, rmse
    language_model    the next token at every position        perplexity, accuracy

`metrics/` has one metric a file. A task is put on any model by `task.on(model)`; `--config.task.name=regression` does
that to the config's model and gives it as many outputs as the targets ask for.
"""

from fedjax8.directions import HIGHER, LOWER
from fedjax8.tasks import metrics
from fedjax8.tasks.base import Metric, Task
from fedjax8.tasks.binary import binary
from fedjax8.tasks.classification import classification
from fedjax8.tasks.language_model import language_model
from fedjax8.tasks.multilabel import multilabel
from fedjax8.tasks.regression import regression

__all__ = [
    "HIGHER",
    "LOWER",
    "Metric",
    "Task",
    "binary",
    "classification",
    "language_model",
    "metrics",
    "multilabel",
    "regression",
]
