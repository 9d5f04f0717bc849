"""Codecs: how a tree becomes a message and back. One file each; `chain` and `per_path` combine them."""

from fedjax8.codecs.chain import chain
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.codecs.per_path import per_path

__all__ = ["chain", "fp8", "none", "per_path"]
