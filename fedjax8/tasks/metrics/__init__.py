"""Metrics of outputs and targets. One file each; see `tasks.base.Metric`.

accuracy, top_k, label_accuracy, mae           means over rows: logged of training, and of clients' own models, too
macro_f1, calibration_error, perplexity, rmse  of the whole set, by sums
auc, r2                                        of the whole set, by scikit-learn on all outputs
"""

from fedjax8.tasks.metrics.accuracy import accuracy
from fedjax8.tasks.metrics.auc import auc
from fedjax8.tasks.metrics.calibration_error import calibration_error
from fedjax8.tasks.metrics.label_accuracy import label_accuracy
from fedjax8.tasks.metrics.macro_f1 import macro_f1
from fedjax8.tasks.metrics.mae import mae
from fedjax8.tasks.metrics.perplexity import perplexity
from fedjax8.tasks.metrics.r2 import r2
from fedjax8.tasks.metrics.rmse import rmse
from fedjax8.tasks.metrics.top_k import top_k

__all__ = [
    "accuracy",
    "auc",
    "calibration_error",
    "label_accuracy",
    "macro_f1",
    "mae",
    "perplexity",
    "r2",
    "rmse",
    "top_k",
]
