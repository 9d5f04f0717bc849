"""Models on flax linen, and what turns any flax module, linen or nnx, into a `Model`."""

from fedjax8.models.cnn import cnn
from fedjax8.models.lenet5 import lenet5
from fedjax8.models.linen import from_linen
from fedjax8.models.logistic import logistic
from fedjax8.models.mlp import mlp
from fedjax8.models.nnx import from_nnx
from fedjax8.models.simple_cnn import simple_cnn

__all__ = ["cnn", "from_linen", "from_nnx", "lenet5", "logistic", "mlp", "simple_cnn"]
