"""Models on flax linen, and wrappers that make a `Model` of any flax module, linen or nnx."""

from fedjax8.models.char_lstm import char_lstm
from fedjax8.models.cnn import cnn
from fedjax8.models.densenet121 import densenet121
from fedjax8.models.densenet201 import densenet201
from fedjax8.models.gpt import gpt
from fedjax8.models.kwt1 import kwt1
from fedjax8.models.lenet5 import lenet5
from fedjax8.models.linen import from_linen
from fedjax8.models.logistic import logistic
from fedjax8.models.matchboxnet import matchboxnet
from fedjax8.models.mlp import mlp
from fedjax8.models.nnx import from_nnx
from fedjax8.models.pretrained import load_params, load_pretrained, save_params
from fedjax8.models.resnet18 import resnet18
from fedjax8.models.resnet20 import resnet20
from fedjax8.models.simple_cnn import simple_cnn
from fedjax8.models.text_encoder import text_encoder
from fedjax8.models.vgg16_star import vgg16_star
from fedjax8.models.vit import vit

__all__ = [
    "char_lstm",
    "cnn",
    "densenet121",
    "densenet201",
    "from_linen",
    "from_nnx",
    "gpt",
    "kwt1",
    "lenet5",
    "load_params",
    "load_pretrained",
    "logistic",
    "matchboxnet",
    "mlp",
    "resnet18",
    "resnet20",
    "save_params",
    "simple_cnn",
    "text_encoder",
    "vgg16_star",
    "vit",
]
