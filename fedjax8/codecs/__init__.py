"""Codecs: how a tree becomes a message and back. One file each; `chain` and `per_path` combine several, `delta`,
`error_feedback` and `skip` wrap one."""

from fedjax8.codecs.chain import chain
from fedjax8.codecs.codebook import codebook
from fedjax8.codecs.count_sketch import count_sketch
from fedjax8.codecs.delta import delta
from fedjax8.codecs.error_feedback import error_feedback
from fedjax8.codecs.evofed import evofed
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.codecs.per_path import per_path
from fedjax8.codecs.powersgd import powersgd
from fedjax8.codecs.randomk import randomk
from fedjax8.codecs.skip import skip
from fedjax8.codecs.topk import topk

__all__ = [
    "chain", "codebook", "count_sketch", "delta", "error_feedback", "evofed", "fp8", "none", "per_path", "powersgd",
    "randomk", "skip", "topk",
]  # fmt: skip
