"""Adapters: functions `Model -> Model` that change a model's parameters or its forward pass from outside."""

from fedjax8.adapters.bottleneck import bottleneck
from fedjax8.adapters.chain import chain
from fedjax8.adapters.inputs import inputs
from fedjax8.adapters.lora import lora
from fedjax8.adapters.none import none
from fedjax8.adapters.pretrained import pretrained
from fedjax8.adapters.prompt import prompt
from fedjax8.adapters.ptq import ptq
from fedjax8.adapters.qat import qat
from fedjax8.adapters.subset import subset

__all__ = ["bottleneck", "chain", "inputs", "lora", "none", "pretrained", "prompt", "ptq", "qat", "subset"]
