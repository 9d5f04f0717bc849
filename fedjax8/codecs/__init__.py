"""Codecs: a tree encoded as a message and decoded again. One file each; `chain` and `per_path` combine several,
`delta`, `error_feedback` and `skip` wrap one; `wire` turns messages into bytes."""

from fedjax8.codecs import wire
from fedjax8.codecs.adaptive import adaptive
from fedjax8.codecs.block_fp8 import block_fp8
from fedjax8.codecs.chain import chain
from fedjax8.codecs.codebook import codebook
from fedjax8.codecs.count_sketch import count_sketch
from fedjax8.codecs.delta import delta
from fedjax8.codecs.drive import drive
from fedjax8.codecs.eden import eden
from fedjax8.codecs.error_feedback import error_feedback
from fedjax8.codecs.evofed import evofed
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.narrow import narrow
from fedjax8.codecs.none import none
from fedjax8.codecs.per_path import per_path
from fedjax8.codecs.powersgd import powersgd
from fedjax8.codecs.randomk import randomk
from fedjax8.codecs.rotated import rotated
from fedjax8.codecs.sign import sign
from fedjax8.codecs.skip import skip
from fedjax8.codecs.terngrad import terngrad
from fedjax8.codecs.topk import topk
from fedjax8.codecs.uniform import uniform

__all__ = [
    "adaptive",
    "block_fp8",
    "chain",
    "codebook",
    "count_sketch",
    "delta",
    "drive",
    "eden",
    "error_feedback",
    "evofed",
    "fp8",
    "narrow",
    "none",
    "per_path",
    "powersgd",
    "randomk",
    "rotated",
    "sign",
    "skip",
    "terngrad",
    "topk",
    "uniform",
    "wire",
]
